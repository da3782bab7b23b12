"""What other packages' attention needs of a GPU, computed densely on a host: the kernels
under torch's `context_parallel` and ring-flash-attn, and all of TransformerEngine's
DotProductAttention. They share no code with the methods that call them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor
from torch.nn import functional


def dense_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Output and log of the sum of exponents; [..., h, q, d] of [..., g, k, d]. The causal
    mask is at the bottom right, as FlashAttention's. In fp32, the output rounded to q's
    precision.
    """
    precision = q.dtype
    q, k, v = q.float(), _repeat(q, k).float(), _repeat(q, v).float()
    scores = (q @ k.transpose(-2, -1)) * scale
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
        scores = scores.masked_fill(~seen.tril(k.shape[-2] - q.shape[-2]), -torch.inf)
    total = scores.logsumexp(-1)
    return ((scores - total[..., None]).exp() @ v).to(precision), total


def dense_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    total: Tensor,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients where `out` and `total` are those of all keys, of which k are a part."""
    groups, precision = k.shape[-3], q.dtype
    k, v = _repeat(q, k).float(), _repeat(q, v).float()
    dout, q, out = dout.float(), q.float(), out.float()
    p = ((q @ k.transpose(-2, -1)) * scale - total[..., None]).exp()
    if causal:
        p = p * torch.ones(p.shape[-2:]).tril(k.shape[-2] - q.shape[-2])
    ds = p * (dout @ v.transpose(-2, -1) - (dout * out).sum(-1, keepdim=True)) * scale
    dk, dv = ds.transpose(-2, -1) @ q, p.transpose(-2, -1) @ dout
    grads = ds @ k, _add_up(dk, groups), _add_up(dv, groups)
    return tuple(x.to(precision) for x in grads)


def _repeat(q: Tensor, x: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[-3] // x.shape[-3], -3)


def _add_up(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(-3, (groups, -1)).sum(-3)


# torch ------------------------------------------------------------------------------------

_LIBRARY: list[Any] = []


def give_torch_flash_on_a_host() -> None:
    """torch's kernel of FlashAttention for CPU tensors, and an SDPA that calls it."""

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        return_debug_mask: bool = False,
        *,
        scale: float | None = None,
    ) -> tuple[Any, ...]:
        out, total = dense_forward(q, k, v, scale or q.shape[-1] ** -0.5, is_causal)
        state = [torch.zeros((), dtype=torch.int64) for _ in range(2)]
        sizes = q.shape[-2], k.shape[-2]
        return out, total, None, None, *sizes, *state, torch.zeros(())

    def backward(
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        total: Tensor,
        cum_seq_q: Tensor | None,
        cum_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        dropout_p: float,
        is_causal: bool,
        philox_seed: Tensor,
        philox_offset: Tensor,
        *,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        factor = scale or q.shape[-1] ** -0.5
        return dense_backward(grad_out, q, k, v, out, total, factor, is_causal)

    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_flash_attention", forward, "CPU")
    library.impl("_scaled_dot_product_flash_attention_backward", backward, "CPU")
    _LIBRARY.append(library)  # it lasts as long as it is referred to

    def scaled_dot_product_attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        is_causal: bool,
        scale: float,
        enable_gqa: bool,
    ) -> Tensor:
        assert enable_gqa or q.shape[1] == k.shape[1]
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = kernel(q, k, v, 0.0, is_causal, False, scale=scale)[0]
        return out

    functional.scaled_dot_product_attention = scaled_dot_product_attention


# flash-attn -------------------------------------------------------------------------------


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, None, None]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, total = dense_forward(q, k, v, softmax_scale, causal)
    return out.transpose(1, 2), total, None, None


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> None:
    inputs = [x.transpose(1, 2) for x in (dout, q, k, v, out)]
    grads = dense_backward(*inputs, softmax_lse, softmax_scale, causal)
    for place, grad in zip((dq, dk, dv), grads, strict=True):
        place.copy_(grad.transpose(1, 2))


def _varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, None, None]:
    out, total = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
    for own, keys in _spans(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        parts = [x.transpose(0, 1) for x in (q[own], k[keys], v[keys])]
        result, total[:, own] = dense_forward(*parts, softmax_scale, causal)
        out[own] = result.transpose(0, 1)
    return out, total, None, None


def _varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> None:
    for own, keys in _spans(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        parts = (dout[own], q[own], k[keys], v[keys], out[own])
        inputs = [x.transpose(0, 1) for x in parts]
        grads = dense_backward(*inputs, softmax_lse[:, own], softmax_scale, causal)
        for place, grad in zip((dq[own], dk[keys], dv[keys]), grads, strict=True):
            place.copy_(grad.transpose(0, 1))


def _spans(
    q: Tensor, k: Tensor, longest_q: int, longest_k: int
) -> list[tuple[slice, slice]]:
    """Of each document its queries and keys. The lengths must be within the longest, which
    sizes a kernel's grid.
    """
    assert q.dtype == k.dtype == torch.int32
    assert int(q.diff().max()) <= longest_q and int(k.diff().max()) <= longest_k
    starts, ends = (q[:-1], k[:-1]), (q[1:], k[1:])
    both = zip(*(x.tolist() for x in (*starts, *ends)), strict=True)
    return [(slice(a, c), slice(b, d)) for a, b, c, d in both]


def give_flash_attn() -> None:
    """`flash_attn.flash_attn_interface` as flash-attn 2.8 names and orders its arguments."""
    package = types.ModuleType("flash_attn")
    interface = types.ModuleType("flash_attn.flash_attn_interface")
    vars(interface).update(
        _flash_attn_forward=_forward,
        _flash_attn_backward=_backward,
        _flash_attn_varlen_forward=_varlen_forward,
        _flash_attn_varlen_backward=_varlen_backward,
    )
    sys.modules |= {package.__name__: package, interface.__name__: interface}


# TransformerEngine ------------------------------------------------------------------------


class DotProductAttention(torch.nn.Module):
    """TransformerEngine 2.12's, with the arguments that it has and some of its assertions
    (its dot_product_attention.py and context_parallel.py). Filled-up places of the output
    are nan: its kernels leave there what was there.
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
    vars(leaf)["_attention_backends"] = {"use_fused_attention": True}
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
