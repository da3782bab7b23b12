"""Times of attention over context-parallel ranks: of each repeat the slowest rank's."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.row_attention import DEVICE, Attention


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], object], repeats: int, budget: float) -> list[float]:
    """Of each repeat, the slowest rank's; as many as `budget` seconds have room for, three
    at least and `repeats` at most.
    """
    step()
    times: list[float] = []
    while len(times) < repeats + 1:
        dist.all_reduce(torch.zeros(1, device=DEVICE))
        synchronize()
        began = time.perf_counter()
        step()
        synchronize()
        taken = torch.tensor(time.perf_counter() - began, device=DEVICE)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        times.append(float(taken))
        if len(times) >= 4 and sum(times) > budget:
            break
    return times[1:]  # the first is of the warm-up


def forward_of(attention: Attention, leaves: list[Tensor]) -> Callable[[], object]:
    """A forward alone."""

    def step() -> None:
        with torch.no_grad():
            attention(*leaves)

    return step


def both_of(
    attention: Attention, leaves: list[Tensor], gradient: Tensor
) -> Callable[[], object]:
    """Forward and backward, with gradients of queries, keys and values."""

    def step() -> None:
        output = attention(*leaves)
        torch.autograd.grad(output, leaves, gradient.view_as(output))

    return step
