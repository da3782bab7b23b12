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
