"""`watch` as its user calls it: on a run's YAML, its directory, and a log from elsewhere."""

from __future__ import annotations

import io
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from alia_ctx.cli.run_commands import app
from alia_ctx.report.screen import WatchedStage, spark, watch_screen
from tests.small_run import write_run

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def line(update: int, **changes: Any) -> dict[str, Any]:
    return {
        "stage": "short",
        "update": update,
        "loss": 5.0 - update / 10,
        "gradient_norm": 1.5,
        "applied": True,
        "spike": False,
        "learning_rate": 3e-3,
        "tokens": 512 * update,
        "seconds": 2.0,
        "compute_seconds": 1.0,
        "communication_seconds": 0.5,
        "step_seconds": 0.2,
        "data_seconds": 0.1,
        "save_seconds": 0.0,
        "tokens_per_second": 256.0,
        "tokens_per_second_per_rank": 64.0,
        "memory_gib": 1.25,
        "mfu": 0.31,
        "time": (NOW + timedelta(seconds=2 * update)).isoformat(),
        "host": "node7",
        "job": "77",
        **changes,
    }


def write_log(folder: Path, lines: list[dict[str, Any]]) -> Path:
    log = folder / "out" / "stages" / "short" / "metrics.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return log


def watch(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["watch", *map(str, arguments)])


def drawn(stage: WatchedStage, now: datetime = NOW) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(watch_screen(stage, now))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("where", ["yaml", "run", "stage", "log", "copy"])
def test_a_pipe_gets_a_line_an_update(where: str, tmp_path: Path) -> None:
    config = write_run(tmp_path)
    marked = [line(n) for n in range(1, 4)]
    marked.append(line(4, applied=False, spike=True, metrics={"loss": 3.25}))
    log = write_log(tmp_path, marked)
    targets = {
        "yaml": config,
        "run": tmp_path / "out",
        "stage": log.parent,
        "log": log,
        "copy": tmp_path / "copied.log",
    }
    shutil.copy(log, targets["copy"])
    shown = watch(targets[where])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    of = "/12" if where == "yaml" else ""
    assert [f"short  update {n}{of}  " in lines[n - 1] for n in range(1, 5)] == [
        True
    ] * 4
    assert "2026-05-04 12:00:08" in lines[3] and "skipped  spike" in lines[3]
    assert "loss 3.25" in lines[3]
    assert any(text.startswith("note: update 4: skipped") for text in lines)
    assert "no line for" in lines[-1], "an old log is not waited for"


def test_a_finished_stage_ends_it(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    write_log(tmp_path, [line(n) for n in range(1, 13)])
    shown = watch(config, "--every", "60")
    assert shown.output.splitlines()[-1] == "short: all 12 updates are done"


def test_a_stage_that_has_not_begun(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    assert watch(config, "--once", "--stage", "long").exit_code == 0
    refused = watch(config, "--stage", "middle")
    assert "--stage=middle" in refused.output + str(refused.exception)
    (tmp_path / "empty").mkdir()
    refused = watch(tmp_path / "empty")
    assert "holds no log of a stage" in refused.output + str(refused.exception)
    refused = watch(tmp_path / "nowhere")
    assert "nowhere" in refused.output + str(refused.exception)


def test_the_screen_has_everything() -> None:
    stage = WatchedStage(
        run="mine [a]",
        name="short",
        lines=[*(line(n) for n in range(1, 8)), line(8, metrics={"far_loss": 2.5})],
        updates=20,
        checkpoints={"update-00000005": NOW.timestamp() - 60},
        unfinished=["update-00000010.incomplete"],
        damaged=["update-00000003.damaged"],
        messages=["2 lines are in metrics.jsonl.superseded"],
        results=["positions-64"],
    )
    text = drawn(stage, NOW + timedelta(seconds=30))
    for part in (
        "mine [a], stage short: update 8 of 20, 24 s left, last line 14 s ago, on node7",
        "job 77",
        "4.2000",
        "31.0%",
        "1.25",
        "update-00000005, 90 s ago",
        "update-00000010.incomplete",
        "update-00000003.damaged",
        "superseded",
        "positions-64",
        "far_loss 2.5",
        "50.0%",
        "25.0%",
    ):
        assert part in text, part
    ranks = next(row for row in text.splitlines() if "ranks" in row)
    assert " 4 " in ranks


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"update": 1}],
        [{"update": 1, "loss": None, "seconds": "x", "time": "soon", "metrics": None}],
        [line(1, loss=float("inf"), tokens_per_second_per_rank=0)],
    ],
)
def test_logs_of_other_releases_are_drawn_as_far_as_they_go(
    lines: list[dict[str, Any]],
) -> None:
    assert "stage s" in drawn(WatchedStage("r", "s", lines))


def test_a_curve_in_a_line() -> None:
    assert spark([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert spark([3.0, 3.0]) == "▁▁"
    assert len(spark([float(n) for n in range(1000)])) == 48
