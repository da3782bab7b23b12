"""How a stage is computed, as words: precision, recomputation, and the loss's chunk.

Nothing here changes what is computed beyond rounding.
"""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]

# Tokens whose logits exist at a time. On a host 256 is as fast as any; on a GPU each chunk
# reads and writes the gradient of the head, so that few chunks are better.
HOST_LOSS_CHUNK = 256
GPU_LOSS_CHUNK = 2048


def kernel_speed(kernel: str) -> str:
    """How fast an attention kernel of a GPU that is not the best is, in words."""
    if kernel == "reference":
        return "many times slower than the best"  # written for hosts; tiles one by one
    return "about half as fast as the best"  # FlashAttention 2: docs/benchmarks/gpu.md


def loss_chunk_tokens(configured: int | None, device: str) -> int:
    """The configured chunk in tokens, or where there is none the default of a device type
    (`cpu`, `cuda`).
    """
    return configured or (GPU_LOSS_CHUNK if device == "cuda" else HOST_LOSS_CHUNK)
