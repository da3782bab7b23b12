"""Methods of attention of one packed row over context-parallel ranks: ours, and two known
ones written plainly on our kernel. Those of other packages are in `row_attention_peers.py`.

ALIA-40b's heads, 64 of queries and 8 of keys, 128 wide. Shapes: t tokens of a rank, h
query heads, g key/value heads, d head_dim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from alia_ctx.mcore.attention import RowGeometry, attend, row_geometry
from alia_ctx.nn.attention_kernels import Kernel, VarlenSpec, varlen_attention
from alia_ctx.nn.context_parallel import Balance
from alia_ctx.nn.key_value_exchange import exchange_key_values
from benchmarks.gpu_step import ROPE
from benchmarks.row_placement import even_share
from benchmarks.stacks import alia_stack

HEADS, GROUPS, DIM = 64, 8, 128
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # a trial of the program
SCALE = DIM**-0.5
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class UnableError(Exception):
    """A method that cannot do this row here; says why."""


@dataclass(frozen=True)
class Row:
    """A packed row, and the rank of the process group that looks at it."""

    offsets: np.ndarray
    kernel: Kernel

    @cached_property
    def cp(self) -> int:
        return dist.get_world_size()

    @cached_property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def group(self) -> Any:
        return dist.group.WORLD

    @property
    def length(self) -> int:
        return int(self.offsets[-1])

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1

    def geometry(self, balance: Balance | None, rank: int | None = None) -> RowGeometry:
        rank = self.rank if rank is None else rank
        return row_geometry(
            *(self.offsets, self.length, self.cp, rank, ROPE, DIM, DEVICE),
            balance=balance,
        )


@dataclass(frozen=True)
class Method:
    """A method made ready for a row, on one rank.

    Attributes:
        forward: output [t, h, d] or [t, h*d] of queries [t, h, d] and keys and values
            [t, g, d]; differentiable.
        tokens: int64 [t], the row's token at each place; below 0 where there is none.
        describe: what computes it, asked after it has run.
    """

    forward: Attention
    tokens: np.ndarray
    describe: Callable[[], str]


# A method lasts as long as the context is entered.
Maker = Callable[[Row], AbstractContextManager[Method]]


@contextlib.contextmanager
def ours(row: Row, *, balanced: bool = True) -> Iterator[Method]:
    """The product's: keys travel only to who can see them; cut by work, or a zigzag."""
    mine = row.geometry(Balance.of(alia_stack(1, 8192)) if balanced else None)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key_values, wait = exchange_key_values(k, v, mine.rank, row.group)
        wait()
        return attend(q, key_values, mine, row.kernel, SCALE)

    yield Method(forward, tokens_of(mine), lambda: row.kernel.name)


@contextlib.contextmanager
def gather(row: Row) -> Iterator[Method]:
    """All keys and values to every rank, gradients reduce-scattered, zigzag cuts."""
    mine = row.geometry(None)
    order = [tokens_of(row.geometry(None, rank)) for rank in range(row.cp)]
    back = torch.from_numpy(np.argsort(np.concatenate(order))).to(DEVICE)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv = _GatherRows.apply(torch.stack([k, v], 1), row.group)[back]
        outputs = []
        for chunk, spec in zip(mine.rank.chunks, mine.specs, strict=True):
            start = chunk.row[1] - int(chunk.key_offsets[-1])
            keys, values = kv[start : chunk.row[1]].unbind(1)
            queries = q[slice(*chunk.queries)]
            outputs.append(
                varlen_attention(queries, keys, values, spec, row.kernel, SCALE)
            )
        return torch.cat(outputs)

    yield Method(forward, tokens_of(mine), lambda: row.kernel.name)


@contextlib.contextmanager
def ulysses(row: Row) -> Iterator[Method]:
    """All-to-all of heads against tokens before and after (arXiv 2309.14509)."""
    spec = VarlenSpec.build(row.offsets, row.offsets, DEVICE)

    def to_heads(x: Tensor) -> Tensor:
        t, h, d = x.shape
        parts = x.view(t, row.cp, h // row.cp, d).transpose(0, 1).contiguous()
        return _AllToAll.apply(parts, row.group).flatten(0, 1)

    def to_tokens(x: Tensor) -> Tensor:
        parts = x.view(row.cp, -1, *x.shape[1:]).contiguous()
        return _AllToAll.apply(parts, row.group).transpose(0, 1).flatten(1, 2)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = map(to_heads, (q, k, v))
        return to_tokens(varlen_attention(q, k, v, spec, row.kernel, SCALE))

    share = even_share(row.length, row.cp, row.rank)
    yield Method(forward, share, lambda: row.kernel.name)


def tokens_of(row: RowGeometry) -> np.ndarray:
    return np.concatenate([np.arange(*span) for span in row.rank.ranges])


class _AllToAll(torch.autograd.Function):
    """Part r of [cp, ...] to rank r; gradients come back the same way."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, parts.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, grad.contiguous(), group=ctx.group)
        return out, None


class _GatherRows(torch.autograd.Function):
    """[t, ...] of each rank -> [cp * t, ...]; gradients are reduce-scattered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.new_empty(grad.shape[0] // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(out, grad.contiguous(), group=ctx.group)
        return out, None
