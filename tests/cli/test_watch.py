"""`watch` as its user calls it: on a run's YAML, its directory, and a log from elsewhere."""

from __future__ import annotations

import io
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from alia_ctx.cli import watch_commands
from alia_ctx.cli.run_commands import app
from alia_ctx.errors import ConfigError
from alia_ctx.report.screen import WatchedStage, spark, watch_screen
from alia_ctx.workflow.watching import Watched, find_watched
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


def test_shares_are_of_wall_time_and_come_to_all_of_it() -> None:
    """Two updates of 2 s, a save of 1 s and an evaluation of 3 s: 8 s."""
    lines = [line(1), line(2, save_seconds=1.0, evaluate_seconds=3.0)]
    text = drawn(WatchedStage("r", "s", lines))
    row = next(row for row in text.splitlines() if "37.5%" in row)
    shares = [float(word.rstrip("%")) for word in row.split() if word.endswith("%")]
    # compute, communication, step, data, save, evaluate, other
    assert shares == [25.0, 12.5, 5.0, 2.5, 12.5, 37.5, 5.0]
    more = [line(1, compute_seconds=1.9)]  # parts that come to more than the whole
    text = drawn(WatchedStage("r", "s", more))
    row = next(row for row in text.splitlines() if "70.4%" in row)
    shares = [float(word.rstrip("%")) for word in row.split() if word.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares[-1] == 0


def test_a_curve_in_a_line() -> None:
    assert spark([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert spark([3.0, 3.0]) == "▁▁"
    assert len(spark([float(n) for n in range(1000)])) == 48


def follow(log: Path, monkeypatch: pytest.MonkeyPatch, *steps: Any) -> list[str]:
    """What `watch LOG` prints while each of `steps` happens between two looks at it; then
    ten minutes go by.
    """
    pending = list(steps)
    clock = [0.0]

    def sleep(seconds: float) -> None:
        if pending:
            pending.pop(0)()
        elif clock[0] > 0:
            raise KeyboardInterrupt  # as a person ends it, who sees lines still come
        else:
            clock[0] += 601.0

    fake = SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0])
    monkeypatch.setattr(watch_commands, "time", fake)
    shown = watch(log, "--plain")
    assert shown.exit_code == 0, shown.output
    return shown.output.splitlines()


def fresh(update: int, **changes: Any) -> dict[str, Any]:
    """A line of just now, so that its log is not taken for an old one."""
    changes.setdefault("time", (datetime.now(UTC) + timedelta(hours=1)).isoformat())
    return line(update, **changes)


def test_updates_that_are_done_again_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [fresh(n, loss=4.0) for n in range(1, 6)]
    log = write_log(tmp_path, first)
    again = [*first[:3], *(line(n, loss=3.0) for n in range(4, 7))]
    aside = log.with_name("metrics.jsonl.superseded")

    def resume() -> None:
        write_log(tmp_path, again)
        aside.write_text("".join(json.dumps(n) + "\n" for n in first[3:]))

    shown = follow(log, monkeypatch, resume)
    losses = [
        (int(t.split("update ")[1].split()[0]), t.split("loss ")[1].split()[0])
        for t in shown
        if "  loss " in t
    ]
    assert losses[:5] == [(n, "4.0000") for n in range(1, 6)]
    assert losses[5:] == [(n, "3.0000") for n in range(4, 7)]
    for n in (4, 5):
        assert f"note: update {n} was done again" in shown
    assert "note: 2 lines are in metrics.jsonl.superseded" in shown
    assert not any("update 6 was done" in text for text in shown)


def test_no_message_is_lost_or_told_twice_where_one_comes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [fresh(1, spike=True)]
    log = write_log(tmp_path, lines)

    def more() -> None:
        log.with_name("metrics.jsonl.broken").write_text("x\n")
        write_log(tmp_path, [*lines, fresh(2, spike=True, time=NOW.isoformat())])

    notes = [t for t in follow(log, monkeypatch, more) if t.startswith("note: ")]
    assert len(notes) == len(set(notes)) == 3
    assert "note: 1 line is in metrics.jsonl.broken" in notes


@pytest.mark.parametrize("where", ["yaml", "log"])
def test_a_log_that_is_not_there_is_waited_for_with_a_word_and_not_for_ever(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path)
    log = write_log(tmp_path, [])
    if where == "yaml":
        log.unlink()
    target = config if where == "yaml" else log
    shown = follow(
        target, monkeypatch, lambda: None, lambda: write_log(tmp_path, [line(1)])
    )
    assert shown[0] == f"note: {log}: has no line yet; waiting for one"
    assert "update 1" in shown[1]
    log.unlink()
    shown = follow(config, monkeypatch)
    assert shown[-1].endswith("no line for 10 minutes")
    once = watch(config, "--once")
    assert once.output == f"note: {log}: has no line yet; waiting for one\n"
    assert "has no line yet" in drawn(Watched(log, "r", "s").now())


def test_lines_without_a_time_are_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path, [line(1, time=None)])
    assert follow(log, monkeypatch)[-1] == "short: no line for 10 minutes"


def test_a_log_says_itself_of_which_stage_it_is(tmp_path: Path) -> None:
    write_run(tmp_path)
    log = write_log(tmp_path, [line(1)])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(log, elsewhere)
    for target in (log, log.parent, elsewhere, elsewhere / log.name):
        assert "short  update 1" in watch(target, "--stage", "short").output
        refused = watch(target, "--stage", "long")
        assert isinstance(refused.exception, ConfigError), target
        assert "--stage=long: is no stage here; there are short" in str(
            refused.exception
        )
        refused = watch(target, "seed=1")
        assert "name the run's YAML to override it" in str(refused.exception)
    (elsewhere / log.name).write_text('{"update": 1}\n')  # of another release
    assert "mine  update 1" in watch(elsewhere, "--stage", "mine", "--once").output


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "run.conf"
    other.write_text("name: x\n")
    refused = watch(other)
    assert isinstance(refused.exception, ConfigError)
    assert "holds no line of a stage's log" in str(refused.exception)


def raise_to(config: Path, updates: int) -> None:
    text = config.read_text()
    assert text.count("tokens: 6144") == 1
    config.write_text(text.replace("tokens: 6144", f"tokens: {512 * updates}"))


def test_a_stage_that_goes_on_beyond_what_is_known_is_not_finished(
    tmp_path: Path,
) -> None:
    config = write_run(tmp_path)
    log = write_log(tmp_path, [line(n) for n in range(1, 13)])
    watched = find_watched(config)
    assert watched.now().finished
    write_log(tmp_path, [line(n) for n in range(1, 14)])  # by overrides, say
    beyond = watched.now()
    assert beyond.updates is None and not beyond.finished
    shown = watch(config, "--plain")
    assert "update 13  " in shown.output and "are done" not in shown.output
    raise_to(config, 14)
    assert (watched.now().updates, watched.now().finished) == (14, False)
    write_log(tmp_path, [line(n) for n in range(1, 15)])
    assert watched.now().finished
    config.write_text("stages: [")  # just being edited
    assert watched.now().done == 14
    assert log.is_file()


def test_the_stage_last_at_work_is_told_by_its_lines(tmp_path: Path) -> None:
    """The files of a copy are all as old as the copy."""
    log, root = write_log(tmp_path, [line(9)]), tmp_path / "out"
    for name, hours in (("new", 2), ("a", -3), ("zz", 1)):
        later = (NOW + timedelta(hours=hours)).isoformat()
        other = root / "stages" / name / "metrics.jsonl"
        other.parent.mkdir()
        other.write_text(json.dumps(line(1, stage=name, time=later)) + "\n")
        os.utime(other, (0, 0))
    os.utime(log)
    assert find_watched(root).name == "new"
    other.write_text("{")  # of no time: as old as its file
    assert find_watched(root).name == "zz"
    assert find_watched(write_run(tmp_path), (), "new").name == "new"


def test_a_line_of_any_content_is_drawn(tmp_path: Path) -> None:
    odd = [
        line(n, loss=loss, spike=True, applied=False, time=None)
        for n, loss in enumerate((None, "NaN", float("nan"), 1, True), 1)
    ]
    shown = watch(write_log(tmp_path, odd), "--once")
    assert shown.exit_code == 0 and "None  short" not in shown.output
    assert "update 1: loss None is a spike" in shown.output
    assert "update 5" in drawn(WatchedStage("r", "short", odd))
