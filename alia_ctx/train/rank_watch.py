"""Which ranks are slower than the others, update after update, and which brought no finite
loss: by their own times and losses, before what all share hides whose they are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.train.engine import Engine, RowLosses, UpdateResult
from alia_ctx.train.faults import Kind, RankName, fault, record_fault

FACTOR = 1.5  # times the median of all ranks
PATIENCE = 3  # updates in a row


@dataclass
class Stragglers:
    """Ranks that need `FACTOR` times the median, both as they are and for the same work,
    `PATIENCE` updates in a row.

    For the same work alone is not enough: time is not proportional to FLOPs where a
    model is small or documents are short, and a rank with little to do would be slow by
    being done a little later than its share says.

    A rank's own time is what it loads and computes before it waits for the others at the
    reduction of the gradients. The ranks of one copy of the model wait for each other
    within that, so all of them are named; `alia-ctx doctor` tells which it is.
    """

    names: Sequence[RankName]
    _recent: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=PATIENCE))
    _seen: int = 0

    def slow(
        self, engine: Engine, seconds: float, share: float
    ) -> dict[RankName, float]:
        """The slow ones -> how many times the median they take. Collective.

        seconds: this rank's own in this update.
        share: its work over the mean of all ranks; 0 where it had none.
        """
        both = np.zeros((2, engine.world_size))
        if share:
            both[:, engine.rank] = seconds, seconds / share
        both = engine.sum_over_ranks(both)
        self._seen += 1
        if self._seen == 1:  # compiles, and meets the file system cold
            return {}
        worked = np.sort(both[:, both[0] > 0], axis=1)
        if worked.shape[1] < 2:
            return {}
        # Of two, the faster one is the rule and the slower the exception.
        rule = worked[:, (worked.shape[1] - 1) // 2]
        self._recent.append((both / rule[:, None]).min(axis=0))
        if len(self._recent) < PATIENCE:
            return {}
        least = np.min(np.stack(list(self._recent)), axis=0)
        slow = np.flatnonzero(least >= FACTOR).tolist()
        return {self.names[rank]: float(least[rank]) for rank in slow}


def without_finite_loss(
    engine: Engine, losses: Sequence[RowLosses], names: Sequence[RankName]
) -> list[RankName]:
    """The ranks whose own losses of an update are not finite. Collective."""
    broken = np.zeros(engine.world_size)
    broken[engine.rank] = not all(math.isfinite(row.total) for row in losses)
    ranks: list[int] = np.flatnonzero(engine.sum_over_ranks(broken)).tolist()
    return [names[rank] for rank in ranks]


class RankWatch:
    """What befalls single ranks of a stage: recorded and told by rank 0 when it begins.

    Args:
        engine: whose ranks are asked for their names. Collective.
        directory: the stage's, see `alia_ctx.train.faults`.
        notice: called on rank 0 with what a person should know.
    """

    def __init__(
        self,
        engine: Engine,
        directory: Path,
        notice: Callable[[str], None],
    ) -> None:
        self.engine, self.directory, self.notice = engine, directory, notice
        own = RankName.of_this_process(engine.rank)
        self.names: tuple[RankName, ...] = tuple(engine.gather_objects(own))
        self._stragglers = Stragglers(self.names)
        self._slow: set[RankName] = set()
        self._broken: list[set[RankName]] = []

    def look(
        self,
        update: int,
        result: UpdateResult,
        data_seconds: float,
        flops: Sequence[float],
        shares: Sequence[Sequence[int]],
    ) -> dict[str, Any]:
        """What befell ranks in an update, for its line in the log: those that are slow,
        and those without a finite loss. Collective.

        data_seconds: that this rank took to read its rows.
        flops, shares: of each row, and the rows of each data-parallel rank.
        """
        own = sum(flops[row] for row in shares[self.engine.data_parallel_rank])
        work = own * len(shares) / sum(flops)
        seconds = data_seconds + result.compute_seconds
        found: dict[str, Any] = {}
        slow = self._stragglers.slow(self.engine, seconds, work)
        if slow:
            found["slow_ranks"] = {str(n.rank): times for n, times in slow.items()}
        for name in slow.keys() - self._slow:
            times = f"{slow[name]:.1f} times as long as the others' median"
            self._record("slow", name, update, f"{name} takes {times}")
        self._slow = set(slow)
        if not result.applied and result.predicted_tokens:
            broken = without_finite_loss(self.engine, result.losses, self.names)
            self._broken.append(set(broken))
            found["ranks_not_finite"] = [name.rank for name in broken]
            for name in broken:
                words = f"{name} has a loss that is not finite"
                self._record("nan", name, update, words)
        return found

    def suspicion(self, updates: int) -> str:
        """Whom to suspect where so many updates had no finite loss: the ranks that were
        without one each time, unless it was all of them; else nothing.
        """
        recent = self._broken[-updates:]
        always = set.intersection(*recent) if recent else set()
        is_same = all(broken == always for broken in recent)
        if not always or not is_same or len(always) == len(self.names):
            return ""
        named = ", ".join(map(str, sorted(always, key=lambda name: name.rank)))
        return (
            f"\nEach time the losses of {named} were not finite, and no others': suspect "
            "that GPU or host first, and start again without it."
        )

    def _record(self, kind: Kind, name: RankName, update: int, words: str) -> None:
        if self.engine.rank == 0:
            record_fault(self.directory, 0, fault(kind, name, update, words))
            self.notice(f"update {update}: {words}")
