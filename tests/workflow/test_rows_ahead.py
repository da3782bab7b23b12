"""The next held-out row is made while the engine works on this one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import DataError
from alia_ctx.evaluation.held_out import HeldOutRow
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.train.engine import RowLosses
from alia_ctx.workflow.measuring import measure

COUNT, LENGTH = 4, 8


class Rows(Sequence[HeldOutRow]):
    """Rows that say when they are made; `damaged` cannot be."""

    def __init__(self, damaged: int | None = None) -> None:
        self.made = [threading.Event() for _ in range(COUNT)]
        self._damaged = damaged

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: Any) -> Any:
        if index == self._damaged:
            raise DataError(f"row {index} is damaged")
        row = PackedRow.from_documents([np.full(LENGTH, index)], LENGTH)
        self.made[index].set()
        return HeldOutRow(row, (0,))


class Engine:
    """One of `ranks` that score rows; each waits for the row behind the one it has."""

    def __init__(self, rows: Rows, rank: int = 0, ranks: int = 1) -> None:
        self.data_parallel_rank, self.data_parallel_size = rank, ranks
        self.scored: list[int] = []
        self._rows = rows

    def row_losses(self, rows: Sequence[PackedRow]) -> tuple[RowLosses, ...]:
        if not rows:
            return ()
        number = int(rows[0].tokens()[0])
        behind = number + self.data_parallel_size
        assert behind >= COUNT or self._rows.made[behind].wait(30)
        self.scored.append(number)
        values = np.full(LENGTH, float(number), np.float32)
        predicted = rows[0].targets() >= 0
        hits = np.zeros(LENGTH, bool)
        return (RowLosses(rows[0], ((0, LENGTH),), values, predicted, hits),)

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]


def measured(engine: Engine, rows: Rows) -> tuple[PositionBands, list[int]]:
    done: list[int] = []
    made = measure(
        engine,  # type: ignore[arg-type]
        rows,
        lambda: PositionBands((0, 4)),
        lambda rows_done, of: done.append(rows_done),
    )
    return made, done


def test_a_row_is_made_while_the_one_before_is_scored() -> None:
    rows = Rows()
    engine = Engine(rows)
    _, done = measured(engine, rows)
    assert engine.scored == [0, 1, 2, 3]
    assert done == [1, 2, 3, 4]


@pytest.mark.parametrize(("rank", "scored"), [(0, [0, 3]), (1, [1]), (2, [2])])
def test_each_rank_makes_its_own(rank: int, scored: list[int]) -> None:
    rows = Rows()
    engine = Engine(rows, rank, 3)
    _, done = measured(engine, rows)
    assert engine.scored == scored
    assert done == [3, 4]
    assert [row for row in range(COUNT) if rows.made[row].is_set()] == scored


def test_what_is_wrong_with_a_row_is_told_and_none_behind_it_is_asked_for() -> None:
    rows, all_there = Rows(damaged=2), Rows()
    for made in all_there.made:
        made.set()
    engine = Engine(all_there)
    with pytest.raises(DataError, match="row 2 is damaged"):
        measured(engine, rows)
    assert engine.scored == [0, 1]
    assert not rows.made[3].is_set()
