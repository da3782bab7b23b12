"""What other packages' attention needs of a GPU, computed densely on a host: the kernels
under torch's `context_parallel` and ring-flash-attn. They share no code with the methods
that call them.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
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
