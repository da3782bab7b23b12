"""The packers against plain item-by-item ones, the context curve against counting, and
the report on a plan.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.packing import PackSpec, build_plan, draw_plan, plan_table
from alia_ctx.data.packing.blend import shuffled
from alia_ctx.data.packing.policies import POLICIES, best_fit, concat
from alia_ctx.data.packing.statistics import context_use
from alia_ctx.data.tokens import write_store
from tests.paths import ROOT


def plain_best_fit(lengths: list[int], row_length: int) -> list[int]:
    """Room left in each bin after best-fit decreasing, one item at a time; sorted."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting, default=row_length)
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return sorted(rooms)


@settings(max_examples=200, deadline=None)
@given(row=st.integers(2, 1100), data=st.data())
def test_best_fit_is_best_fit_decreasing(row: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, row), min_size=1, max_size=120))
    pieces = best_fit(np.arange(len(lengths)), np.array(lengths), row)
    assert sorted(pieces.document.tolist()) == list(range(len(lengths)))
    assert pieces.length.tolist() == [lengths[number] for number in pieces.document]
    assert (np.diff(pieces.bin) >= 0).all() and set(pieces.bin.tolist()) == set(
        range(pieces.bins)
    )
    rooms = row - np.bincount(pieces.bin, weights=pieces.length)
    assert sorted(rooms.astype(int).tolist()) == plain_best_fit(lengths, row)


def test_best_fit_with_many_equal_lengths() -> None:
    chance = np.random.default_rng(3)
    lengths = np.concatenate(
        (np.full(5000, 7), np.full(3000, 600), chance.integers(1, 4096, 2000))
    )
    pieces = best_fit(np.arange(lengths.size), lengths, 4096)
    rooms = 4096 - np.bincount(pieces.bin, weights=pieces.length)
    assert sorted(rooms.astype(int).tolist()) == plain_best_fit(lengths.tolist(), 4096)


@settings(max_examples=100, deadline=None)
@given(
    row=st.integers(2, 50),
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=40),
)
def test_concat_cuts_only_at_row_ends(row: int, lengths: list[int]) -> None:
    pieces = concat(np.arange(len(lengths)) + 10, np.array(lengths), row)
    flat = [
        (number + 10, at)
        for number, length in enumerate(lengths)
        for at in range(length)
    ]
    found = [
        (number, start + at)
        for number, start, length in zip(
            pieces.document, pieces.start, pieces.length, strict=True
        )
        for at in range(length)
    ]
    assert found == flat
    filled = np.bincount(pieces.bin, weights=pieces.length)
    assert (filled[:-1] == row).all()
    ends = np.cumsum(pieces.length)
    cut = pieces.start + pieces.length < np.array(lengths)[pieces.document - 10]
    assert (ends[cut] % row == 0).all()


@settings(max_examples=50, deadline=None)
@given(row=st.integers(2, 100), data=st.data())
def test_context_curve_counts_tokens(row: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, row), min_size=1, max_size=30))
    before = [at for length in lengths for at in range(length)]
    for n, share in context_use(np.array(lengths), row):
        assert share == pytest.approx(sum(each > n for each in before) / len(before))


def plain_splitmix(number: int, purpose: str) -> int:
    """SplitMix64's mixing of (number + hash of purpose) * golden, in whole numbers."""
    bits = (1 << 64) - 1
    x = (
        number + xxhash.xxh3_64_intdigest(purpose.encode())
    ) * 0x9E3779B97F4A7C15 & bits
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & bits
    x = (x ^ x >> 27) * 0x94D049BB133111EB & bits
    return x ^ x >> 31


def test_shuffling_is_a_fixed_permutation() -> None:
    """The literal is the first one made: a change of it would give all plans another order."""
    assert shuffled(8, "a").tolist() == [2, 7, 5, 0, 4, 3, 1, 6]
    order = sorted(
        range(1000), key=lambda number: plain_splitmix(number, "pack/0/all/3")
    )
    assert shuffled(1000, "pack/0/all/3").tolist() == order
    assert shuffled(1000, "b").tolist() != shuffled(1000, "c").tolist()


def test_a_plan_can_be_looked_at(tmp_path: Path) -> None:
    from rich.console import Console

    store = write_store(
        tmp_path / "a", [np.arange(n) for n in (100, 5000, 300, 20)], 6000
    )
    plan = build_plan(
        {"wiki": store}, PackSpec("best_fit", "split"), 2048, None, tmp_path / "plan"
    )
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in plan_table(plan):
        console.print(table)
    text = console.export_text()
    assert "wiki" in text and "5,420" in text and "more than 1,023" in text
    # 2 rows of 2,048 and 904 + 300 + 100 + 20: tokens with more than 1,023 before them
    # are 2 * 1,024
    assert f"{2 * 1024 / 5420:.2%}" in text
    draw_plan(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_each_policy_is_documented() -> None:
    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    for name in POLICIES:
        assert f"`policy: {name}`" in text
