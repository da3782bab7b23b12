"""The decoder as plain torch functions on Hugging Face's tensor names: what `verify` holds
against transformers.

One layer at a time, fp32, no cache, one document of sparse positions. Shapes: T tokens,
H hidden, h query heads, k KV heads, d head_dim.
"""

# ruff: noqa: N803, N806 - shape suffixes are part of tensor names

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from alia_ctx.nn.rotary import cos_sin, inverse_frequencies, rotate
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec


class ReferenceDecoder:
    """Layers of `model` for tokens at `positions_T`, with the RoPE that training at
    `context` uses.
    """

    def __init__(
        self, model: ModelSpec, rope: RopeSpec, context: int, positions_T: Tensor
    ) -> None:
        self._model = model
        inv_freq, scaling = inverse_frequencies(rope, model.head_dim, context)
        self._cos, self._sin = cos_sin(positions_T, inv_freq, scaling)

    def layer(self, x_TH: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """One decoder layer; `weights` by their names within the layer
        (`self_attn.q_proj.weight`, ...).
        """
        x_TH = x_TH + self._attention(
            self.norm(x_TH, weights["input_layernorm.weight"]), weights
        )
        y_TH = self.norm(x_TH, weights["post_attention_layernorm.weight"])
        gate = functional.silu(functional.linear(y_TH, weights["mlp.gate_proj.weight"]))
        up = functional.linear(y_TH, weights["mlp.up_proj.weight"])
        return x_TH + functional.linear(gate * up, weights["mlp.down_proj.weight"])

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root mean square norm over the last axis."""
        return functional.rms_norm(x, (x.shape[-1],), weight, self._model.rms_norm_eps)

    def _attention(self, x_TH: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        q_Thd, k_Tkd, v_Tkd = (self._project(x_TH, name, weights) for name in "qkv")
        q_Thd, k_Tkd = (rotate(x, self._cos, self._sin) for x in (q_Thd, k_Tkd))
        q, k, v = (x.transpose(0, 1)[None] for x in (q_Thd, k_Tkd, v_Tkd))
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )
        return functional.linear(
            out[0].transpose(0, 1).flatten(1), weights["self_attn.o_proj.weight"]
        )

    def _project(
        self, x_TH: Tensor, name: str, weights: Mapping[str, Tensor]
    ) -> Tensor:
        bias = weights.get(f"self_attn.{name}_proj.bias")
        y = functional.linear(x_TH, weights[f"self_attn.{name}_proj.weight"], bias)
        heads = y.view(x_TH.shape[0], -1, self._model.head_dim)
        weight = weights.get(f"self_attn.{name}_norm.weight")
        return heads if weight is None else self.norm(heads, weight)


def spread_positions(context: int, ends: int = 16, between: int = 32) -> Tensor:
    """Positions that show a wrong RoPE: the first and last `ends`, and `between` spaced
    evenly in the logarithm.

    A wrong scaling shows only between tokens far apart, a wrong base already between
    neighbours; a causal pass over these few positions sees both without a sequence as
    long as the context. int64 [T], ascending.
    """
    low, high = min(ends, context), max(context - ends, 0)
    steps = torch.logspace(
        0, 1, between + 2, base=max(context, 2) / max(low, 1), dtype=torch.float64
    )
    middle = (low * steps / steps[0]).long().clamp(0, context - 1)
    sparse = torch.cat([torch.arange(low), middle, torch.arange(high, context)])
    positions: Tensor = sparse.unique()
    return positions
