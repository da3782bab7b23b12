"""Which ranks are slower than the others, update after update, and which brought no finite
loss: by their own times and losses, before what all share hides whose they are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alia_ctx.train.engine import Engine, RowLosses
from alia_ctx.train.faults import RankName

FACTOR = 1.5  # times the median of all ranks
PATIENCE = 3  # updates in a row


@dataclass
class Stragglers:
    """Ranks that need `FACTOR` times the median for the same work, `PATIENCE` updates in a
    row.

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
        times = np.zeros(engine.world_size)
        times[engine.rank] = seconds / share if share else 0.0
        times = engine.sum_over_ranks(times)
        self._seen += 1
        if self._seen == 1:  # compiles, and meets the file system cold
            return {}
        worked = np.sort(times[times > 0])
        if worked.size < 2:
            return {}
        # Of two, the faster one is the rule and the slower the exception.
        self._recent.append(times / worked[(worked.size - 1) // 2])
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
