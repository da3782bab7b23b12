"""Progress as a person sees it: lines without a terminal, a live bar with one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from alia_ctx import progress
from alia_ctx.progress import Meter


def test_a_better_total_moves_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    monkeypatch.setattr(progress, "console", console)
    meter = Meter("tokenize", 1.0, "token", None)
    meter.retotal(400)
    meter.last_line = -1e9
    meter.update(100)
    meter.update(400)
    assert "tokenize:  25%" in console.export_text(clear=False)
    assert "100%" in console.export_text()


def test_a_live_bar_learns_of_the_better_total() -> None:
    bar = Progress(console=Console(file=io.StringIO()))
    meter = Meter("tokenize", 1.0, "token", bar)
    meter.retotal(400)
    meter.update(100)
    assert (bar.tasks[0].total, bar.tasks[0].completed) == (400, 100)


class Clock:
    """`time.monotonic` that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def lines_of(
    monkeypatch: pytest.MonkeyPatch,
    updates: list[tuple[float, float]],
    begin: float = 0.0,
    **options: int,
) -> list[str]:
    """What a meter of 1,000 tokens says of (seconds, tokens done) of each update."""
    console, clock = Console(file=io.StringIO(), width=80, record=True), Clock()
    monkeypatch.setattr(progress, "console", console)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    meter = Meter("train", 1000.0, "token", None)
    clock.now += 40  # loading, which is no speed either
    meter.begin_at(begin, **options)
    for number, (seconds, done) in enumerate(updates, 1):
        clock.now += seconds
        meter.update(done, f"update {number}")
    return console.export_text().splitlines()


def test_the_first_update_counts_in_no_speed_and_in_what_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As a stage on a GPU: the first update compiles for 7 s, those after take 0.2 s.
    updates = [(7.0, 100), *((0.2, done) for done in range(200, 1001, 100))]
    first, second, *_, last = lines_of(monkeypatch, updates, unmeasured=1)
    assert first == "train:  10%  update 1"
    assert second == "train:  20%  500 token/s update 2  0:00:02 left"
    assert last == "train: 100%  500 token/s update 10  took 0:00:09"
    _, second, *_ = lines_of(monkeypatch, updates)
    assert second == "train:  20%  28 token/s update 2  0:00:29 left"


def test_a_start_in_the_middle_leaves_out_its_own_first_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates = [(7.0, 700), (0.2, 800), (0.2, 900)]
    lines = lines_of(monkeypatch, updates, begin=600, unmeasured=1)
    assert lines == [
        "train:  70%  update 1",
        "train:  80%  500 token/s update 2  0:00:00 left",
        "train:  90%  500 token/s update 3  0:00:00 left",
    ]


def test_an_only_update_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = lines_of(monkeypatch, [(5.0, 1000)], begin=500, unmeasured=1)
    assert line == "train: 100%  100 token/s update 1  took 0:00:05"
