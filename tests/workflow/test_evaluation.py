"""Evaluations of a run: which there are, and how their rows go over the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, Self

import numpy as np
import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.packing import PackedRow
from alia_ctx.evaluation.evaluator import RowPieces
from alia_ctx.evaluation.held_out import HeldOutRow
from alia_ctx.train.engine import RowLosses
from alia_ctx.workflow.measuring import measure
from tests.small_run import write_run


def test_every_evaluation_says_what_it_is(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path))
    lines = workflow.standard_lines(run)
    assert [(line.model, line.context, line.role.name) for line in lines] == [
        ("short", 64, "BASE"),
        ("short", 256, "BASE_GIVEN_LONGER"),
        ("long", 256, "STAGE"),
    ]  # fmt: skip


def test_a_stage_called_like_a_baseline_is_none(tmp_path: Path) -> None:
    """Roles do not hang on names: this one begins as the base's longer input does."""
    path = write_run(tmp_path)
    name = "short given 256 tokens"
    path.write_text(path.read_text().replace("  long:", f"  {name}:"))
    roles = {line.name: line.role for line in workflow.standard_lines(load_run(path))}
    assert roles[name] is workflow.Role.STAGE


def test_short_text_does_not_shorten_what_needs_none(tmp_path: Path) -> None:
    measure = "evaluation.measure=[positions,retrieval]"
    run = load_run(write_run(tmp_path), [measure])
    lines = workflow.standard_lines(run, 100)
    assert [(line.model, line.context, line.evaluators) for line in lines] == [
        ("short", 64, ("positions", "retrieval")),
        ("short", 100, ("positions",)),
        ("short", 256, ("retrieval",)),
        ("long", 100, ("positions",)),
        ("long", 256, ("retrieval",)),
    ]
    assert workflow.standard_lines(run, 256) == workflow.standard_lines(run)


class Ranks:
    """Two data-parallel ranks in threads, each of which predicts every token of its rows:
    loss = token, hit where the token is even.
    """

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, Barrier(size, timeout=30)
        self.objects: list[Any] = [None] * size


class FakeEngine:
    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.data_parallel_rank = ranks, rank
        self.data_parallel_size = ranks.size
        self.calls = 0

    def row_losses(self, rows: Sequence[PackedRow]) -> list[RowLosses]:
        self.calls += 1
        made: list[RowLosses] = []
        for row in rows:
            tokens = row.tokens()
            half = row.length // 2
            ranges = ((half, row.length), (0, half))  # in an order of its own
            values = np.concatenate([tokens[a:b] for a, b in ranges]).astype(np.float32)
            made.append(
                RowLosses(
                    row, ranges, values, np.ones(row.length, bool), values % 2 == 0
                )
            )
        return made

    def gather_objects(self, value: Any) -> list[Any]:
        self.ranks.objects[self.data_parallel_rank] = value
        self.ranks.barrier.wait()
        gathered = list(self.ranks.objects)
        self.ranks.barrier.wait()  # nobody writes the next before all have read this
        return gathered


class Seen:
    """An evaluator that remembers (position, loss, hit) of every token."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, float, bool]] = []

    def add(
        self,
        row: RowPieces,
        losses_T: np.ndarray,
        hits_T: np.ndarray | None = None,
        *,
        position_offset: Sequence[int] | None = None,
    ) -> None:
        assert hits_T is not None and position_offset is not None
        self.tokens += [
            (position_offset[0] + i, float(loss), bool(hit))
            for i, (loss, hit) in enumerate(zip(losses_T, hits_T, strict=True))
        ]

    def merge(self, other: Self) -> None:
        self.tokens += other.tokens

    def to_json(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        made = cls()
        made.tokens = list(data["tokens"])
        return made


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_row_is_measured_once_on_any_number_of_ranks(size: int) -> None:
    texts = [np.arange(10 * n, 10 * n + 6) for n in range(5)]
    rows = [
        HeldOutRow(PackedRow.from_documents([text], length=6), (100 * n,))
        for n, text in enumerate(texts)
    ]
    expected = sorted(
        (100 * n + i, float(token), token % 2 == 0)
        for n, text in enumerate(texts)
        for i, token in enumerate(text.tolist())
    )
    ranks = Ranks(size)
    engines = [FakeEngine(ranks, rank) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(lambda engine: measure(engine, rows, Seen), engines))
    for result in results:
        assert sorted(result.tokens) == expected
    assert len({engine.calls for engine in engines}) == 1, "every rank takes part"
