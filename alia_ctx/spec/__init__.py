"""What a stage is, as numbers:

sizes of the model, rotary embedding, parallel layout. No tensors.
"""

from alia_ctx.spec.layout import Layout, zigzag_chunks
from alia_ctx.spec.model import Architecture, ModelSpec
from alia_ctx.spec.rope import ROPE_TYPES, RopeSpec, RopeType

__all__ = [
    "ROPE_TYPES",
    "Architecture",
    "Layout",
    "ModelSpec",
    "RopeSpec",
    "RopeType",
    "zigzag_chunks",
]
