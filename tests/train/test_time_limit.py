"""`--exit-before` leaves room for the evaluation of the next update, on a clock that only
evaluations move.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from alia_ctx import checkpoint, workflow
from alia_ctx.train.metrics_log import JsonLines, MetricsLog
from alia_ctx.train.pace import Pace
from alia_ctx.workflow import training
from tests.workflow.scenarios import Run, in_small_run

HOUR = 3600.0


def limited(stage: Run, hours: float, every: int, *more: str) -> tuple[str, list[str]]:
    """Train eight updates with evaluations that take an hour each, some of them beside a
    save; the message at the end, and what was said of evaluations.
    """
    ahead, real, notices = [0.0], (time.monotonic, time.perf_counter), list[str]()
    monotonic, counter = real
    time.monotonic = lambda: monotonic() + ahead[0]  # type: ignore[assignment]
    time.perf_counter = lambda: counter() + ahead[0]  # type: ignore[assignment]

    def evaluation(*_: Any) -> Any:
        def measured() -> dict[str, Any]:
            for thread in threading.enumerate():
                if thread.name == "checkpoint writer":
                    thread.join()  # else the hour is its own, on a slow disk
            ahead[0] += HOUR
            return {"metrics": {}, "evaluate_seconds": HOUR}

        return measured

    settings = ["stages.short.tokens=4096", f"evaluation.every_updates={every}"]
    settings += ["engine.hang_minutes=6000", *more]
    if not (stage.output / "plans/short").is_dir():
        workflow.pack(stage.config(*settings), "short")
    kept = training._evaluation, training._warn
    training._evaluation, training._warn = evaluation, notices.append
    running = time.time() - psutil.Process().create_time()
    try:
        said = stage.train("short", *settings, exit_before=running + hours * HOUR)
    finally:
        training._evaluation, training._warn = kept
        time.monotonic, time.perf_counter = real
    return said, [text for text in notices if "evaluation" in text]


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    path = Path(folder, "run.yaml")

    def stage(name: str) -> Run:
        return Run(path, Path(folder, name))

    again = stage("again")
    seen = {
        "each update": limited(stage("a"), 2.5, 1),
        "every second": limited(stage("b"), 2.5, 2),
        "time enough": limited(stage("c"), 8.5, 1),
        "at the end alone": limited(stage("d"), 0.5, 1000),
        "none": limited(stage("e"), 0.5, 0),
        "begun": limited(again, 0.9, 2),
        "begun again": limited(again, 0.9, 2),
    }
    root = again.output / "stages/short/checkpoints"
    seen["updates"] = checkpoint.update_of(checkpoint.latest(root)), []  # type: ignore[assignment]
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_small_run(scenarios, tmp_path_factory, "limits")


@pytest.mark.parametrize(
    ("case", "after"),
    [
        ("each update", 2),  # the third evaluation would end at 3 h
        ("every second", 5),  # update 5 has none, the sixth has the third
        ("begun", 2),
        ("begun again", 3),  # by what the log says of the process before
    ],
)
def test_an_evaluation_that_is_too_long_is_not_begun(
    case: str, after: int, seen: dict[str, Any]
) -> None:
    assert f"stopped by the time limit after update {after};" in seen[case][0]


def test_a_limit_that_is_far_enough_stops_nothing(seen: dict[str, Any]) -> None:
    assert [seen[case][0] for case in ("time enough", "none")] == ["", ""]
    assert seen["at the end alone"][0] == ""  # nothing is known of the only one


def test_that_the_first_evaluation_is_not_counted_is_said(seen: dict[str, Any]) -> None:
    for case in ("each update", "at the end alone", "begun"):
        assert len(seen[case][1]) == 1 and "from the second on" in seen[case][1][0]
    for case in ("none", "begun again"):
        assert seen[case][1] == []


def test_what_was_measured_here_counts_more_than_what_was_before() -> None:
    """Another layout may be slower, or faster."""
    pace = Pace(past_evaluation=50.0)
    pace.updated(2.0)
    pace.updated(1.0)
    assert pace.another(is_evaluated=True) == 54.0
    assert pace.another(is_evaluated=False) == 4.0
    pace.evaluated(7.0)
    pace.evaluated(5.0)
    assert pace.another(is_evaluated=True) == 11.0


@pytest.mark.parametrize(
    ("values", "last"),
    [
        (["3.5", "null", "2", "null"], 2.0),
        (["null", "null"], 0.0),
        (["4", '"edited"', "NaN"], 4.0),
        ([], 0.0),
    ],
)
def test_the_last_number_of_a_log(
    values: list[str], last: float, tmp_path: Path
) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [
        f'{{"update": {n}, "loss": 1.0, "evaluate_seconds": {value}}}\n'
        for n, value in enumerate(values, 1)
    ]
    file.write_text("".join(lines))
    with MetricsLog(JsonLines(file, len(values))) as log:
        assert log.last_number("evaluate_seconds") == last
    assert MetricsLog(None).last_number("evaluate_seconds") == 0.0
