"""Where time goes, and when a stage may be done: the page beside `watch`."""

from __future__ import annotations

from typing import Any

import pytest

from alia_ctx.report import training
from alia_ctx.report.reality import reality
from alia_ctx.report.wall_time import seconds_for, shares_of_time, wall_seconds
from tests.report.made_facts import lines, run, stage

_LINE = {"seconds": 10.0, "compute_seconds": 8.0}
_BESIDE = {"save_seconds": 10.0, "evaluate_seconds": 20.0}


def test_shares_are_of_all_wall_time() -> None:
    of = [{**_LINE, **_BESIDE}] * 10
    assert wall_seconds(of) == 400
    shares = shares_of_time(of)
    assert sum(shares.values()) == pytest.approx(1)
    for part, share in {"compute": 20, "save": 25, "evaluate": 50, "other": 5}.items():
        assert shares[part] == pytest.approx(share / 100)
    assert shares_of_time([]) == shares_of_time([{"loss": 1.0}]) == {}


@pytest.mark.parametrize("every", [1, 2, 5])
def test_what_is_left_has_saves_and_evaluations(every: int) -> None:
    """Which are not of each update; a slow first one is no sign of the others."""
    of = [{"seconds": 500.0}] + [{"seconds": 10.0} for _ in range(99)]
    for line in of[every - 1 :: every]:
        line |= _BESIDE
    assert seconds_for(20, of) == pytest.approx(20 * (10 + 30 / every))
    assert seconds_for(0, of) == 0
    assert seconds_for(20, []) is None


def test_the_page_counts_what_lies_beside_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, Any] = {}
    stacked = training.stacked

    def caught(title: str, names: Any, shares: Any, **more: Any) -> str:
        drawn.update(shares)
        return stacked(title, names, shares, **more)

    monkeypatch.setattr(training, "stacked", caught)
    of = [{**line, **_LINE, **_BESIDE} for line in lines(60, 2048)]
    facts = run(stages=[stage("x40", 5120, lines=of)])
    page = training.speed(facts)
    assert drawn["save"] == [pytest.approx(25)]
    assert drawn["evaluate"] == [pytest.approx(50)]
    assert "40 min 0 s" in page and "40 min 0 s in all" in reality(facts)


def test_figures_by_update_are_by_the_updates_of_the_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A log may lack lines."""
    drawn: dict[str, Any] = {}
    curves = training.curves

    def caught(title: str, of: Any, **more: Any) -> str:
        drawn[title] = of
        return curves(title, of, **more)

    monkeypatch.setattr(training, "curves", caught)
    training.speed(run(stages=[stage("x40", 5120, lines=lines(60, 2048)[40:])]))
    [line] = drawn["imbalance by update"]
    assert list(line.x) == list(range(41, 61))
