"""Which ranks are slow, from their times and their work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alia_ctx.train.faults import RankName
from alia_ctx.train.rank_watch import Stragglers

NAMES = tuple(RankName(rank, "host", "cpu") for rank in range(4))


class Ranks:
    """Four ranks' numbers at once, as the collective makes them of one rank's."""

    world_size = 4

    def __init__(self, rank: int, seconds: list[float], shares: list[float]) -> None:
        self.rank, self.seconds, self.shares = rank, seconds, shares

    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        own = np.array([self.seconds, np.divide(self.seconds, self.shares)])
        assert np.allclose(values[:, self.rank], own[:, self.rank])
        return own


def slow_after(updates: list[tuple[list[float], list[float]]]) -> dict[Any, float]:
    stragglers = Stragglers(NAMES)
    found: dict[Any, float] = {}
    for seconds, shares in [([9.0] * 4, [1.0] * 4), *updates]:
        ranks: Any = Ranks(2, seconds, shares)
        found = stragglers.slow(ranks, seconds[2], shares[2])
    return found


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_a_rank_that_takes_thrice_as_long_is_named(share: float) -> None:
    shares = [1.0, 1.0, 1.0, share]
    found = slow_after([([1.0, 1.0, 1.0, 3 * share], shares)] * 3)
    assert found == {NAMES[3]: pytest.approx(3 * share)}


def test_one_with_little_work_is_not_slow_by_being_done_late_for_its_share() -> None:
    """Of four H100 and a small model: rows of short documents, a third of the FLOPs and
    eight tenths of the time.
    """
    assert not slow_after([([1.0, 1.0, 1.0, 0.8], [1.2, 1.2, 1.2, 0.35])] * 5)


def test_one_with_much_work_is_not_slow_by_having_it() -> None:
    assert not slow_after([([1.0, 1.0, 1.0, 2.0], [0.8, 0.8, 0.8, 1.6])] * 5)


def test_once_is_no_rule() -> None:
    even = [1.0] * 4
    late = ([1.0, 1.0, 1.0, 3.0], even)
    assert not slow_after([late, late, (even, even), late, late])
