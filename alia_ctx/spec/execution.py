"""How a stage is computed, as words: precision, layers, recomputation, and the loss's chunk.

Nothing here changes what is computed beyond rounding.
"""

from __future__ import annotations

from typing import Literal

from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec

Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]
# Who computes a layer's products and norms: TransformerEngine, or Megatron-Core itself.
Layers = Literal["te", "local"]
# As they are asked for: `auto` takes TransformerEngine's where they are installed.
AskedLayers = Literal["auto", "te", "local"]
# How the products of the layers are scaled where they are computed in FP8: a scale a
# tensor, found as it is cast (current), or one for each block of 128 numbers (blockwise).
Fp8 = Literal["off", "current", "blockwise"]

# Of `engine.attention`: what any device computes, in any precision. The others are kernels
# of GPUs, which compute in 16 bits alone.
KERNELS_OF_HOSTS = ("auto", "reference")
PRECISIONS_OF_GPU_KERNELS: tuple[Precision, ...] = ("bf16",)

# FP8 products take numbers of tokens and widths that are multiples of this
# (transformer_engine.pytorch.quantization, get_align_size_for_quantization).
FP8_MULTIPLE = 16

# Tokens whose logits exist at a time. On a host 256 is as fast as any; on a GPU each chunk
# reads and writes the gradient of the head, so that few chunks are better.
HOST_LOSS_CHUNK = 256
GPU_LOSS_CHUNK = 2048


def fp8_problem(
    model: ModelSpec, layout: Layout, bf16_layers: int
) -> tuple[str, str] | None:
    """Why a model's layers cannot be computed in FP8 but for the first and last
    `bf16_layers` of them, and the remedy; None where they can.
    """
    layers, most = model.num_hidden_layers, model.num_hidden_layers // layout.pp
    if not 0 <= bf16_layers <= most or 2 * bf16_layers >= layers:
        rule = (
            f"the first and last {bf16_layers} of {layers} layers are to keep bf16, which "
            f"leaves none, or is more than a pipeline rank has ({most})"
        )
        return rule, "set engine.fp8_bf16_layers=0, or engine.fp8=off"
    tp = layout.tp
    narrow = _narrow(model, tp)
    if not narrow:
        return None
    rule = f"widths on tp={tp} are no multiples of {FP8_MULTIPLE}: {', '.join(narrow)}"
    fewer = (n for n in range(tp - 1, 0, -1) if tp % n == 0 and not _narrow(model, n))
    if (possible := next(fewer, None)) is not None:
        return rule, f"use tp={possible}, or engine.fp8=off"
    return rule, "set engine.fp8=off: the model has such widths on no tp"


def _narrow(model: ModelSpec, tp: int) -> list[str]:
    """Widths of a rank's products that FP8 does not take."""
    products = {
        "hidden_size": model.hidden_size,
        "all heads of queries": model.query_size // tp,
        "queries, keys and values": (model.query_size + 2 * model.key_value_size) // tp,
        "intermediate_size": model.intermediate_size // tp,
    }
    return [f"{name} {n}" for name, n in products.items() if n % FP8_MULTIPLE]


def loss_chunk_tokens(configured: int | None, device: str) -> int:
    """The configured chunk in tokens, or where there is none the default of a device type
    (`cpu`, `cuda`).
    """
    return configured or (GPU_LOSS_CHUNK if device == "cuda" else HOST_LOSS_CHUNK)
