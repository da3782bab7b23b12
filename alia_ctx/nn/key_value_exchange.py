"""Moving keys and values between context-parallel ranks, and their gradients back.

Each rank sends a token's key and value only to the ranks whose queries can see it,
straight into their place in row order; with packed documents that is far less than a
gather of the whole row, and with one document as long as the row it is three quarters
of it. Backward returns the partial gradients along the same edges in the compute dtype
(half the bytes of fp32) and adds them in fp32 at the owner, in rank order: one rounding
a partial however many ranks there are, and the same result every time, which a
reduce-scatter in bf16 gives neither.

Shapes: t own tokens, b buffer tokens, g key/value heads, d head_dim; axis 1 of [_, 2,
g, d] is key, value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alia_ctx.nn.context_parallel import RankGeometry, Transfer

Wait = Callable[[], None]
KeyValues = tuple[tuple[Tensor, Tensor], ...]


def exchange_key_values(
    key_tgd: Tensor, value_tgd: Tensor, geometry: RankGeometry, group: dist.ProcessGroup
) -> tuple[KeyValues, Wait]:
    """Start to collect the keys and values that this rank's chunks can see.

    Returns for each chunk its (key, value) slices [keys, g, d], and a function to call
    before they are read: until then they are in flight, so independent work may be put
    between. Differentiable in key and value. With cp=1
    the slices are the inputs themselves, but for values that are a view: kept for the
    backward it would keep the whole product of Q, K and V alive, ten times their size
    in ALIA.
    """
    if geometry.cp == 1:
        return ((key_tgd, value_tgd.contiguous()),), lambda: None
    pending: list[dist.Work] = []
    slices = _ExchangeKeyValues.apply(  # type: ignore[no-untyped-call]
        key_tgd, value_tgd, geometry, group, pending
    )

    def wait() -> None:
        for work in pending:
            work.wait()
        pending.clear()

    return tuple(zip(slices[::2], slices[1::2], strict=True)), wait


def open_channels(group: dist.ProcessGroup, device: torch.device | str) -> None:
    """One tiny collective: NCCL wants all ranks in a group's first call, and a point-
    to-point batch may lack some.
    """
    if group.size() > 1:
        dist.all_reduce(torch.zeros(1, device=device), group=group)


def _start(
    operations: Sequence[tuple[Callable[..., Any], Tensor, int]],
    group: dist.ProcessGroup,
    pending: list[dist.Work],
) -> None:
    """Post `(isend or irecv, tensor, group rank)` in one batch;

    the tensors must live until `pending` is waited for.
    """
    if not operations:
        return
    batch = [
        dist.P2POp(op, tensor, group=group, group_peer=peer)
        for op, tensor, peer in operations
    ]
    pending.extend(dist.batch_isend_irecv(batch))


def _source(tensor: Tensor, transfer: Transfer) -> Tensor:
    return tensor[transfer.source_start : transfer.source_start + transfer.length]


def _target(tensor: Tensor, transfer: Transfer) -> Tensor:
    return tensor[transfer.target_start : transfer.target_start + transfer.length]


class _ExchangeKeyValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        key_tgd: Tensor,
        value_tgd: Tensor,
        geometry: RankGeometry,
        group: dist.ProcessGroup,
        pending: list[dist.Work],
    ) -> tuple[Tensor, ...]:
        own = torch.stack((key_tgd, value_tgd), dim=1)
        buffer = own.new_empty((geometry.buffer_tokens, *own.shape[1:]))
        receives = [
            (dist.irecv, _target(buffer, t), t.source) for t in geometry.receives
        ]
        sends = [(dist.isend, _source(own, t), t.target) for t in geometry.sends]
        _start(receives + sends, group, pending)
        for transfer in geometry.local:
            _target(buffer, transfer).copy_(_source(own, transfer))
        ctx.geometry, ctx.group, ctx.shape = geometry, group, own.shape
        parts = [buffer[slice(*chunk.keys)] for chunk in geometry.chunks]
        return tuple(part[:, which] for part in parts for which in (0, 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        geometry, shape = ctx.geometry, ctx.shape
        partial = grads[0].new_zeros((geometry.buffer_tokens, *shape[1:]))
        for index, grad in enumerate(grads):
            partial[slice(*geometry.chunks[index // 2].keys), index % 2] += grad
        own = _return_gradients(partial, geometry, ctx.group)
        return own[:, 0], own[:, 1], None, None, None


def _return_gradients(
    partial: Tensor, geometry: RankGeometry, group: dist.ProcessGroup
) -> Tensor:
    """Sum over ranks of the gradients of this rank's tokens, [t, 2, g, d] in the dtype
    of `partial`.
    """
    pending: list[dist.Work] = []
    arrivals = [
        partial.new_empty((t.length, *partial.shape[1:])) for t in geometry.sends
    ]
    # What was sent to a rank comes back from it, so both sides again list their
    # messages in one order.
    receives = [
        (dist.irecv, a, t.target) for a, t in zip(arrivals, geometry.sends, strict=True)
    ]
    sends = [(dist.isend, _target(partial, t), t.source) for t in geometry.receives]
    _start(receives + sends, group, pending)
    accumulate = torch.promote_types(partial.dtype, torch.float32)
    total = partial.new_zeros((geometry.tokens, *partial.shape[1:]), dtype=accumulate)
    for transfer in geometry.local:
        _source(total, transfer).add_(_target(partial, transfer))
    for work in pending:
        work.wait()
    for arrival, transfer in zip(arrivals, geometry.sends, strict=True):
        _source(total, transfer).add_(arrival)
    return total.to(partial.dtype)
