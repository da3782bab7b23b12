"""The processes that share a conversion: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from alia_ctx.errors import CheckpointError
from alia_ctx.rank_variables import OF_A_MEETING, rank_problem

# A rank waits for the slowest share: hours of copying are no fault.
_PATIENCE = timedelta(hours=24)


class Ranks:
    """Ranks that do one thing together. Alone it is rank 0 of 1 and nothing is communicated."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    @contextmanager
    def from_environment(cls) -> Iterator[Ranks]:
        """The ranks that torchrun describes (gloo over its rendezvous), or one process;

        for a `with` block. CheckpointError where its variables are there in part.
        """
        if (os.environ.get("WORLD_SIZE") or "1") == "1":
            yield cls()
            return
        started = not dist.is_initialized()
        if started:
            _require_variables()
            dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield cls(dist.get_rank(), dist.get_world_size())
        finally:
            if started:
                dist.destroy_process_group()

    def all(self, work: Callable[[], Any]) -> list[Any]:
        """Run `work` on every rank and return all ranks' results, by rank, on every rank.

        Where a rank fails, every rank raises: the failing one its own error, the others
        a CheckpointError that quotes it. So nobody waits for a rank that has gone.
        """
        if self.size == 1:
            return [work()]
        result, error = None, None
        try:
            result = work()
        except (
            Exception
        ) as caught:  # it is raised below, after the others have heard of it
            error = caught
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(
            outcomes, (result, None if error is None else str(error))
        )
        if error is not None:
            raise error
        for rank, (_, reason) in enumerate(outcomes):
            if reason is not None:
                raise CheckpointError(f"rank {rank} failed: {reason}")
        return [value for value, _ in outcomes]

    def first(self, work: Callable[[], Any]) -> Any:
        """Run `work` on rank 0 only and return its result on every rank; errors as in `all`."""
        return self.all(lambda: work() if self.rank == 0 else None)[0]


def _require_variables() -> None:
    if problem := rank_problem(OF_A_MEETING, needed="WORLD_SIZE"):
        raise CheckpointError(
            f"{problem}: share the work with `torchrun --nproc-per-node N -m "
            "alia_ctx.cli ...`, which sets them all, or unset WORLD_SIZE for one process"
        )
