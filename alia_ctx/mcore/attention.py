"""Core attention for packed rows under context parallelism, in the place of Megatron's
`core_attention`.

Megatron's GPTModel is built with no position embedding; this module rotates queries and
keys itself from positions that restart at each document. Context parallelism cuts the
row, not the documents, so nothing is padded. All that depends on the row alone is
prepared once, in `row_geometry`, and shared by all layers, microbatch directions and
recomputations: a layer neither loops over documents nor waits for the device.

Shapes: t tokens of this rank, h query heads and g key/value heads of this
tensor-parallel rank, d head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from alia_ctx.errors import LayoutError
from alia_ctx.nn.attention_kernels import (
    Kernel,
    VarlenSpec,
    resolve_kernel,
    varlen_attention,
)
from alia_ctx.nn.context_parallel import Balance, RankGeometry, rank_geometry
from alia_ctx.nn.key_value_exchange import (
    KeyValues,
    exchange_key_values,
    open_channels,
)
from alia_ctx.nn.rotary import cos_sin, inverse_frequencies, rotate
from alia_ctx.spec.rope import RopeSpec


@dataclass(kw_only=True)
class RowGeometry(PackedSeqParams):
    """A row as one context-parallel rank sees it; pass it as Megatron's `packed_seq_params`.

    Of the inherited fields only `qkv_format="thd"` is set, which makes Megatron drop
    the batch axis; the rest would describe the row to kernels that do not run here.
    `cos` and `sin` are fp32 [t, d/2] on the device, `specs` has one kernel call for
    each chunk of `rank`.
    """

    rank: RankGeometry
    specs: tuple[VarlenSpec, ...]
    cos: Tensor
    sin: Tensor
    qkv_format: str = "thd"


def row_geometry(
    doc_offsets: np.ndarray,
    row_length: int,
    cp: int,
    cp_rank: int,
    rope: RopeSpec,
    head_dim: int,
    device: torch.device | str = "cpu",
    context: int | None = None,
    balance: Balance | None = None,
) -> RowGeometry:
    """Prepare a packed row for `cp_rank` of `cp`.

    `doc_offsets` (int [n+1]) bounds the documents, from 0 to the real tokens; tokens
    after them are fill and attend among themselves only. `context` (default
    `row_length`) is the stage's, for `dynamic` RoPE. The rank's tokens are those of
    `rank.ranges` of the result, in that order: the zigzag, or what `balance` makes of
    this row. Raises LayoutError if the row is not a multiple of 2*cp (cp > 1),
    DataError for broken offsets.
    """
    rank = rank_geometry(doc_offsets, row_length, cp, cp_rank, balance)
    frequencies, scaling = inverse_frequencies(rope, head_dim, context or row_length)
    cos, sin = cos_sin(
        torch.from_numpy(rank.positions).to(device), frequencies, scaling
    )
    specs = tuple(
        VarlenSpec.build(chunk.query_offsets, chunk.key_offsets, device)
        for chunk in rank.chunks
    )
    return RowGeometry(rank=rank, specs=specs, cos=cos, sin=sin)


class PackedAttention(MegatronModule):
    """Causal attention among the tokens of each document of a packed row, heads split by
    TP, the row by CP.

    `kernel` is a name for `resolve_kernel`; give it in the layer spec's `params`.
    Raises LayoutError when built with heads that tensor parallelism does not divide,
    with dropout, or for a kernel that this machine lacks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        kernel: str = "auto",
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(
            required_pgs=["tp", "cp"]
        )
        _check(config, groups.tp.size(), attention_type, attention_dropout)
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
        self.kernel: Kernel = resolve_kernel(kernel, device_type)
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.cp_group = groups.cp
        open_channels(self.cp_group, device_type)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attention output [t, h*d] from unrotated query [t, h, d] and key, value [t,
        g, d] of this rank's tokens.

        Tokens beyond those of the row's geometry are padding (`padded_tokens`): none
        sees them, and their output is 0.
        """
        row = packed_seq_params
        if not isinstance(row, RowGeometry):
            raise LayoutError(
                f"PackedAttention got packed_seq_params={type(row).__name__}; pass a RowGeometry"
            )
        if attention_mask is not None or attention_bias is not None:
            raise LayoutError(
                "PackedAttention takes its mask from the row geometry; pass attention_mask=None"
            )
        tokens = len(row.cos)
        padding = len(query) - tokens
        if padding:
            query, key, value = query[:tokens], key[:tokens], value[:tokens]
        key_values, wait = exchange_key_values(
            rotate(key, row.cos, row.sin), value, row.rank, self.cp_group
        )
        query = rotate(query, row.cos, row.sin)  # while keys and values travel
        wait()
        output = attend(
            query, key_values, row, self.kernel, self.softmax_scale
        ).flatten(1)
        return (
            torch.nn.functional.pad(output, (0, 0, 0, padding)) if padding else output
        )


def attend(
    query_thd: Tensor,
    key_values: KeyValues,
    row: RowGeometry,
    kernel: Kernel,
    softmax_scale: float,
) -> Tensor:
    """Output [t, h, d] of rotated queries [t, h, d]:

    one kernel call a chunk on its (key, value) of `key_values`.
    """
    outputs = [
        varlen_attention(
            query_thd[slice(*chunk.queries)], key, value, spec, kernel, softmax_scale
        )
        for chunk, spec, (key, value) in zip(
            row.rank.chunks, row.specs, key_values, strict=True
        )
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _check(
    config: TransformerConfig,
    tp: int,
    attention_type: str,
    attention_dropout: float | None,
) -> None:
    heads, groups = (
        config.num_attention_heads,
        config.num_query_groups or config.num_attention_heads,
    )
    dropout = (
        config.attention_dropout if attention_dropout is None else attention_dropout
    )
    if groups % tp or heads % tp:
        raise LayoutError(
            f"tp={tp} does not divide {heads} attention heads and {groups} key/value "
            "heads; use a tp that divides both"
        )
    if dropout:
        raise LayoutError(
            f"attention_dropout={dropout}: the kernels have no dropout; set it to 0"
        )
    if attention_type != "self":
        raise LayoutError(
            f"attention_type={attention_type!r}: only self-attention is packed"
        )
    if (
        config.apply_query_key_layer_scaling
        or config.window_size is not None
        or config.softmax_type != "vanilla"
    ):
        raise LayoutError(
            "query-key layer scaling, sliding windows and softmax offsets are not "
            "supported; unset them"
        )
