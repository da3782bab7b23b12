"""A stage that survives:

resume, layouts, signals, faults. Every run is a real one on Megatron-Core.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.train.stopping import REQUEUE, Watchdog, parse_duration
from tests.distributed import run_distributed
from tests.small_run import (
    alia,
    command,
    environment,
    metrics,
    state_checksums,
    write_run,
)
from tests.train.runs import StopAfter, last, numbers, start

# Same reason as in test_engine: fp32 sums in another order, over a dozen updates.
LOSS_TOLERANCE = 1e-5


def test_ledger_counts_real_tokens(uninterrupted: Path) -> None:
    manifest = checkpoint.read_manifest(last(uninterrupted))
    run = load_run(uninterrupted / "run.yaml")
    plan = workflow.open_plan(run, "short")
    rows = [plan.row(i) for i in range(run.stage("short").rows)]
    ledger = manifest.ledger[-1]
    assert (ledger.updates, ledger.rows) == (12, 96)
    assert ledger.tokens == sum(row.real_tokens for row in rows)
    assert ledger.predicted_tokens == sum(row.predicted for row in rows)
    assert ledger.predicted_tokens == sum(
        line["predicted_tokens"] for line in metrics(uninterrupted)
    )


def recompute(rank: int, path: str, update: int) -> Any:
    try:
        return workflow.recompute(load_run(path), "short", update)
    except AliaError as error:
        return str(error)


@pytest.mark.parametrize("update", [1, 10])
def test_logged_loss_can_be_recomputed(update: int, uninterrupted: Path) -> None:
    """Forward only, rows dealt otherwise: the same fp32 losses, summed in another order."""
    for result in run_distributed(
        recompute, 2, str(uninterrupted / "run.yaml"), update
    ):
        assert result.logged == metrics(uninterrupted)[update - 1]["loss"]
        assert result.loss == pytest.approx(result.logged, rel=1e-6)


def test_update_without_its_checkpoint_cannot_be_recomputed(
    uninterrupted: Path,
) -> None:
    message = run_distributed(recompute, 1, str(uninterrupted / "run.yaml"), 5)[0]
    assert "no checkpoint" in message and "updates 1, 10 can be recomputed" in message


def test_metrics_say_what_they_should(uninterrupted: Path) -> None:
    lines = metrics(uninterrupted)
    assert [line["update"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    line = lines[5]
    for key in (
        "tokens_per_second_per_rank",
        "mfu",
        "mfu_6n",
        "memory_gib",
        "data_seconds",
        "compute_seconds",
        "communication_seconds",
        "step_seconds",
        "save_seconds",
        "imbalance",
    ):
        assert line[key] is not None and line[key] >= 0, key
    assert line["loss_by_source"]["text"] == pytest.approx(line["loss"], rel=1e-12)
    assert (uninterrupted / "out/stages/short/tensorboard").is_dir()


# -- kill -9 ---------------------------------------------------------------------------


class KillAt:
    """Kills the process with SIGKILL inside the nth call of a function."""

    def __init__(self, where: str, call: int, rank: int) -> None:
        self.where, self.call, self.rank = where, call, rank

    def __call__(self, rank: int) -> None:
        import importlib

        if rank != self.rank:
            return
        module_name, _, attribute = self.where.rpartition(":")
        owner: Any = importlib.import_module(module_name)
        *parents, name = attribute.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original, calls = getattr(owner, name), [0]

        def deadly(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, deadly)


MOMENTS = {
    "in the middle of an update": KillAt(
        "alia_ctx.mcore.forward_backward:ForwardBackward.rows", 5, 1
    ),
    "while weights are written": KillAt(
        "alia_ctx.checkpoint.background_save:BackgroundSave._write", 2, 0
    ),
    "between data and metadata": KillAt(
        "alia_ctx.checkpoint.background_save:BackgroundSave._write_metadata", 2, 0
    ),
    "before the rename": KillAt("alia_ctx.checkpoint.directory:publish", 2, 0),
    "while old ones are removed": KillAt("alia_ctx.checkpoint:sweep", 3, 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_is_bit_identical(
    moment: str, tmp_path: Path, uninterrupted: Path
) -> None:
    path = write_run(tmp_path)
    with pytest.raises(AssertionError, match=r"ended with status -9|failed"):
        start(path, ranks=2, sabotage=MOMENTS[moment])
    assert start(path, ranks=2) == ""
    assert numbers(tmp_path) == numbers(uninterrupted)
    assert state_checksums(last(tmp_path)) == state_checksums(last(uninterrupted))
    leftovers = [
        p.name
        for p in last(tmp_path).parent.iterdir()
        if not re.fullmatch(r"update-\d+", p.name)
    ]
    assert not leftovers


# -- layouts ---------------------------------------------------------------------------


def test_layout_changes_at_each_resume(tmp_path: Path, uninterrupted: Path) -> None:
    """dp2 -> tp2 -> pp2 -> cp2 -> dp1, two updates each but the last:

    same rows and ledger, same losses to rounding.
    """
    path = write_run(tmp_path)
    for number, (layout, ranks) in enumerate(
        [("{}", 2), ("{tp: 2}", 2), ("{pp: 2}", 2), ("{cp: 2}", 2), ("{}", 1)]
    ):
        stop = [StopAfter(2)] if number < 4 else [None]
        message = start(
            path,
            f"stages.short.layout={layout}",
            f"cluster.ranks_per_node={ranks}",
            ranks=ranks,
            sabotage=stop[0],
        )
        assert ("stopped by SIGUSR1" in message) == (number < 4), message
    for mine, theirs in zip(metrics(tmp_path), metrics(uninterrupted), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=LOSS_TOLERANCE)
        assert [mine[k] for k in ("rows", "tokens", "predicted_tokens")] == [
            theirs[k] for k in ("rows", "tokens", "predicted_tokens")
        ]
    mine, theirs = (
        checkpoint.read_manifest(last(f)).ledger for f in (tmp_path, uninterrupted)
    )
    assert mine == theirs


# -- stopping --------------------------------------------------------------------------


def test_signal_finishes_the_update_saves_and_asks_for_requeue(
    tmp_path: Path, uninterrupted: Path
) -> None:
    path = write_run(tmp_path)
    message = start(path, ranks=2, sabotage=StopAfter(5, signal.SIGTERM))
    assert (
        message
        == "RequeueError: stopped by SIGTERM after update 5; saved, start again to go on"
    )
    assert checkpoint.read_manifest(last(tmp_path)).update == 5
    assert start(path, ranks=2) == ""
    assert numbers(tmp_path) == numbers(uninterrupted)


def test_time_limit_saves_and_asks_for_requeue(tmp_path: Path) -> None:
    message = start(write_run(tmp_path), exit_before=0.0)
    assert "stopped by the time limit after update 1" in message
    assert checkpoint.read_manifest(last(tmp_path)).update == 1


def test_command_exits_75_on_ctrl_c(tmp_path: Path) -> None:
    path = write_run(tmp_path, tokens=64 * 8 * 4000)
    assert alia("pack", str(path), "--stage", "short").returncode == 0
    with subprocess.Popen(
        command("train", str(path), "--stage", "short"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        log = tmp_path / "out/stages/short/metrics.jsonl"
        deadline = time.monotonic() + 120
        while (
            not (log.is_file() and log.read_text().count("\n") >= 2)
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == REQUEUE
    assert "stopped by SIGINT" in errors and "Traceback" not in errors
    said = errors.splitlines()
    assert said[0].startswith("alia-ctx ") and str(path) in said[0]
    block = [line.split()[0] for line in said if line.startswith("  ")]
    known = ["model", "layout", "engine", "plan", "start", "saves", "numbers", "end"]
    assert block[: len(known)] == known
    assert any("once more stops at once" in line for line in said)
    written = metrics(tmp_path)[-1]
    assert datetime.fromisoformat(written["time"]).utcoffset() == timedelta(0)
    assert written["host"] == socket.gethostname() and written["job"] is None


@pytest.mark.parametrize(
    "text,seconds", [("23:50:00", 85800), ("0:00:30", 30), ("2-01:00:00", 176400)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "1:2", "10 minutes", "-1:00:00"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="HH:MM:SS"):
        parse_duration(text)


def hang(rank: int, folder: str) -> None:
    with Watchdog(0.5, Path(folder), rank):
        time.sleep(60)


def test_watchdog_dumps_stacks_and_ends_a_hung_rank(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"status {REQUEUE}"):
        run_distributed(hang, 2, str(tmp_path), timeout=60)
    dumps = list(tmp_path.glob("hang-rank-*.txt"))
    assert dumps and all(
        "time.sleep" in d.read_text() or "hang" in d.read_text() for d in dumps
    )


def test_changed_settings_within_a_stage_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    start(path, sabotage=StopAfter(3))
    message = start(path, "stages.short.learning_rate=0.1")
    assert "learning_rate: 0.003 there, 0.1 now" in message


def test_manifest_is_json_with_checksums(uninterrupted: Path) -> None:
    document = json.loads((last(uninterrupted) / "manifest.json").read_text())
    assert document["files"] and all(
        {"bytes", "xxh3_128"} <= set(entry) for entry in document["files"].values()
    )
    assert document["config"]["stages"]["short"]["context"] == 64
