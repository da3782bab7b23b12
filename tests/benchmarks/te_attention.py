"""TransformerEngine's DotProductAttention under context parallelism, computed densely on a
host; it shares no code with the method that calls it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor


def untouched() -> dict[str, Any]:
    """`_attention_backends` as its module begins."""
    return {
        "use_flash_attention": None,
        "flash_attention_backend": None,
        "use_fused_attention": None,
        "use_unfused_attention": None,
        "backend_selection_requires_update": False,
    }


BACKENDS = untouched()
INSTALLED = {"flash": True}


def choose(*, pad_between_seqs: bool = False) -> None:
    """TransformerEngine 2.12's choice on Hopper of what its variables let it take, kept for as
    long as the arguments are the same (`get_attention_backend`, and what calls it).
    """
    if BACKENDS.get("attention_params") != [pad_between_seqs]:
        BACKENDS["attention_params"] = [pad_between_seqs]
        BACKENDS["backend_selection_requires_update"] = True
    if BACKENDS["backend_selection_requires_update"]:
        wanted = {
            name: bool(int(os.getenv(f"NVTE_{name}_ATTN", "1")))
            for name in ("FLASH", "FUSED", "UNFUSED")
        }
        flash = wanted["FLASH"] and INSTALLED["flash"] and not pad_between_seqs
        fused = wanted["FUSED"]
        BACKENDS.update(
            use_flash_attention=flash
            and not fused,  # fused is preferred from Hopper on
            flash_attention_backend="3.0.0b1" if flash else None,
            use_fused_attention=fused,
            use_unfused_attention=wanted["UNFUSED"] and not flash and not fused,
            backend_selection_requires_update=False,
        )
    if not any(BACKENDS[f"use_{n}_attention"] for n in ("flash", "fused", "unfused")):
        raise ValueError(
            "No dot product attention backend is available for the provided inputs."
        )


class DotProductAttention(torch.nn.Module):
    """TransformerEngine 2.12's, with the arguments that it has and some of its assertions
    (transformer_engine.pytorch.attention.dot_product_attention). Filled-up places of the
    output are nan: its kernels leave there what was there.
    """

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int,
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        softmax_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.shape = num_attention_heads, num_gqa_groups, kv_channels
        self.form, self.mask = qkv_format, attn_mask_type
        self.scale = softmax_scale or 1 / math.sqrt(kv_channels)
        self.cp, self.rank, self.communication = 1, 0, "p2p"

    def set_context_parallel_group(
        self,
        cp_group: Any,
        cp_global_ranks: list[int],
        cp_stream: Any,
        cp_comm_type: str = "p2p",
    ) -> None:
        if cp_comm_type == "a2a+p2p":
            assert isinstance(cp_group, list) and len(cp_group) == 2
            assert self.form != "thd", "thd is not supported with hierarchical CP"
            sizes = [dist.get_world_size(group) for group in cp_group]
            self.cp = sizes[0] * sizes[1]
        else:
            assert isinstance(cp_group, dist.ProcessGroup)
            self.cp = dist.get_world_size(cp_group)
        assert cp_global_ranks == list(range(self.cp))
        self.rank, self.communication = dist.get_rank(), cp_comm_type

    def forward(
        self,
        query_layer: Tensor,
        key_layer: Tensor,
        value_layer: Tensor,
        *,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_kv: Tensor | None = None,
        cu_seqlens_q_padded: Tensor | None = None,
        cu_seqlens_kv_padded: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        pad_between_seqs: bool | None = None,
    ) -> Tensor:
        q, k, v = query_layer, key_layer, value_layer
        choose(pad_between_seqs=bool(pad_between_seqs))
        if self.form == "bshd":
            assert self.mask == "causal" and q.dim() == 4 and len(q) == 1
            q, k, v = q[0], k[0], v[0]
            real = filled = [0, q.shape[0] * self.cp]
        else:
            assert self.form == "thd" and self.mask == "padding_causal"
            assert self.communication != "all_gather", "thd is not supported!"
            assert cu_seqlens_q is not None and cu_seqlens_q.dtype == torch.int32
            assert torch.equal(cu_seqlens_q, cu_seqlens_kv)
            assert max_seqlen_q == max_seqlen_kv
            real = cu_seqlens_q.tolist()
            padded = cu_seqlens_q_padded
            assert self.cp == 1 or padded is not None
            filled = real if padded is None else padded.tolist()
            assert pad_between_seqs == (real != filled)
            lengths = [b - a for a, b in itertools.pairwise(filled)]
            assert max_seqlen_q is not None and max(lengths) <= max_seqlen_q
        out = self._attend(q, k, v, real, filled)
        return out.flatten(1) if self.form == "thd" else out.flatten(1)[None]

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, real: list[int], filled: list[int]
    ) -> Tensor:
        """Each document in 2*cp chunks, of which this rank has one from either end."""
        places, document, position, is_real = [], [], [], []
        chunks = 2 * self.cp if self.cp > 1 else 1
        for number, (start, stop) in enumerate(itertools.pairwise(filled)):
            size, rest = divmod(stop - start, chunks)
            assert rest == 0, "each sequence must be divisible by 2*cp_size"
            length = real[number + 1] - real[number]
            for chunk in {self.rank, chunks - 1 - self.rank}:
                places += range(start + chunk * size, start + (chunk + 1) * size)
            document += [number] * (stop - start)
            position += range(stop - start)
            is_real += [i < length for i in range(stop - start)]
        own = torch.tensor(
            sorted(places)
        )  # document by document, the front chunk first
        assert len(own) == len(q) == len(k)
        whole_k, whole_v = (
            self._of_all(x, own, filled[-1]) if self.cp > 1 else x for x in (k, v)
        )
        number, place = torch.tensor(document), torch.tensor(position)
        there = torch.tensor(is_real)
        mask = (number[own, None] == number) & (place[own, None] >= place) & there
        heads, groups, _ = self.shape
        assert groups is not None
        keys, values = (
            x.repeat_interleave(heads // groups, 1).transpose(0, 1)
            for x in (whole_k, whole_v)
        )
        scores = q.transpose(0, 1) @ keys.transpose(1, 2) * self.scale
        scores = scores.masked_fill(~mask, -1e30)
        out = (scores.softmax(-1) @ values).transpose(0, 1)
        return torch.where(there[own, None, None], out, torch.nan)

    @staticmethod
    def _of_all(x: Tensor, own: Tensor, length: int) -> Tensor:
        empty = torch.zeros(length, *x.shape[1:])
        whole: Tensor = differentiable.all_reduce(empty.index_copy(0, own, x))
        return whole


@contextlib.contextmanager
def transformer_engine() -> Iterator[None]:
    """The package with this module alone."""
    top = types.ModuleType("transformer_engine")
    inner = types.ModuleType("transformer_engine.pytorch")
    path = "transformer_engine.pytorch.attention.dot_product_attention"
    leaf = types.ModuleType(path)
    vars(inner)["DotProductAttention"] = DotProductAttention
    vars(leaf)["_attention_backends"] = BACKENDS
    BACKENDS.clear()
    BACKENDS.update(untouched())
    modules = {m.__name__: m for m in (top, inner, leaf)}
    modules |= {name: types.ModuleType(name) for name in [path.rsplit(".", 1)[0]]}
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules |= modules
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
