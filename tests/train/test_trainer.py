"""A stage that survives:

resume, layouts, signals, faults. Every run is a real one on Megatron-Core.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
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

# Same reason as in test_engine: fp32 sums in another order, over a dozen updates.
LOSS_TOLERANCE = 1e-5


def train(
    rank: int,
    path: str,
    overrides: list[str],
    sabotage: Callable[[int], None] | None = None,
    exit_before: float | None = None,
) -> str:
    """Train stage `short`; the message of the error that stopped it, or nothing."""
    if sabotage is not None:
        sabotage(rank)
    try:
        workflow.train(load_run(path, overrides), "short", exit_before=exit_before)
    except AliaError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def start(
    path: Path,
    *overrides: str,
    ranks: int = 1,
    sabotage: Any = None,
    exit_before: float | None = None,
) -> str:
    run = load_run(path, overrides)
    if not (Path(run.output) / "plans" / "short").is_dir():
        workflow.pack(run, "short")
    return run_distributed(
        train, ranks, str(path), list(overrides), sabotage, exit_before, timeout=200
    )[0]


def last(folder: Path) -> Path:
    return checkpoint.list_checkpoints(
        folder / "out" / "stages" / "short" / "checkpoints"
    )[-1]


def numbers(folder: Path) -> list[tuple[Any, ...]]:
    """What must not depend on how often a run was stopped."""
    keys = ("update", "loss", "gradient_norm", "tokens", "predicted_tokens", "rows")
    return [tuple(map(str, (line[k] for k in keys))) for line in metrics(folder)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert start(write_run(folder), ranks=2) == ""
    return folder


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


class StopAfter:
    """Sends SIGUSR1, as SLURM would, to rank 0 in the nth update of this process."""

    def __init__(self, updates: int, number: int = signal.SIGUSR1) -> None:
        self.updates, self.number = updates, number

    def __call__(self, rank: int) -> None:
        from alia_ctx.mcore.engine import MegatronEngine

        original, calls = MegatronEngine.train_update, [0]

        def signalled(engine: Any, *args: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.updates and rank == 0:
                os.kill(os.getpid(), self.number)
            return original(engine, *args)

        MegatronEngine.train_update = signalled  # type: ignore[method-assign]


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


def test_command_exits_75_on_sigterm(tmp_path: Path) -> None:
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
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == REQUEUE
    assert "stopped by SIGTERM" in errors and "Traceback" not in errors


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


# -- faults ----------------------------------------------------------------------------


class BreakUpdates:
    """Makes the loss of given updates NaN."""

    def __init__(self, *updates: int) -> None:
        self.updates = updates

    def __call__(self, rank: int) -> None:
        from alia_ctx.mcore.engine import MegatronEngine

        original, calls = MegatronEngine.reduce_losses, [0]

        def broken(engine: Any, losses: Any) -> tuple[float, int]:
            calls[0] += 1
            loss, predicted = original(engine, losses)
            return (math.nan if calls[0] in self.updates else loss), predicted

        MegatronEngine.reduce_losses = broken  # type: ignore[method-assign]


def test_nan_update_is_skipped_and_counted(tmp_path: Path) -> None:
    assert start(write_run(tmp_path), sabotage=BreakUpdates(2, 3, 7)) == ""
    lines = metrics(tmp_path)
    assert [line["update"] for line in lines if not line["applied"]] == [2, 3, 7]
    assert lines[1]["loss"] is None
    assert checkpoint.read_manifest(last(tmp_path)).ledger[-1].skipped_updates == 3


def test_three_nan_updates_in_a_row_stop_with_a_diagnosis(tmp_path: Path) -> None:
    message = start(write_run(tmp_path), sabotage=BreakUpdates(5, 6, 7))
    assert "DivergedError" in message and "3 updates in a row" in message
    assert "row 48: text/" in message, (
        "the rows of update 7 and their documents are named"
    )
    assert (
        "update-00000003" in message
        and checkpoint.read_manifest(last(tmp_path)).update == 3
    )


def damage_flip(path: Path) -> None:
    file = max((path / "state").glob("*.distcp"), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def damage_cut(path: Path) -> None:
    file = max((path / "state").glob("*.distcp"), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size - 1)


def damage_remove(path: Path) -> None:
    next((path / "state").glob("*.distcp")).unlink()


def damage_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    "damage", [damage_flip, damage_cut, damage_remove, damage_manifest]
)
def test_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, uninterrupted: Path
) -> None:
    path = write_run(tmp_path)
    start(path, ranks=2, sabotage=StopAfter(8))
    assert [p.name for p in checkpoint.list_checkpoints(last(tmp_path).parent)] == [
        "update-00000006",
        "update-00000008",
    ]
    damage(last(tmp_path))
    assert start(path, ranks=2) == ""
    assert numbers(tmp_path) == numbers(uninterrupted)
    assert state_checksums(last(tmp_path)) == state_checksums(last(uninterrupted))
    assert "update-00000008" in [p.name for p in last(tmp_path).parent.iterdir()]


def test_all_damaged_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    start(path, sabotage=StopAfter(4))
    for found in checkpoint.list_checkpoints(last(tmp_path).parent):
        damage_cut(found)
    message = start(path)
    assert "every checkpoint in" in message and "is damaged" in message


def without_tmpfs() -> str:
    """Why no tmpfs can be mounted here, or nothing:

    it takes a mount namespace, of a user's own where not root.
    """
    if shutil.which("unshare") is None:
        return "no `unshare` on this machine"
    done = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip()


@pytest.mark.skipif(
    without_tmpfs() != "", reason=f"a full disk needs a small tmpfs: {without_tmpfs()}"
)
@pytest.mark.parametrize("meets", ["data", "metadata", "manifest"])
def test_full_disk_leaves_a_good_checkpoint_and_says_so(
    tmp_path: Path, uninterrupted: Path, meets: str
) -> None:
    """Two checkpoints fit on a small tmpfs and the third does not;

    with more space the run goes on, bit-exact.
    """
    folder = tmp_path / "run"
    folder.mkdir()
    path = write_run(folder)
    assert alia("pack", str(path), "--stage", "short").returncode == 0
    root = folder / "out/stages/short/checkpoints"
    root.mkdir(parents=True)
    train = " ".join(
        map(shlex.quote, command("train", str(path), "--stage", "short", ranks=2))
    )
    script = f"""
        mount -t tmpfs -o size={room_for(last(uninterrupted), meets)} tmpfs {root} || exit 77
        {train} 2> {tmp_path}/full.err; echo $? > {tmp_path}/full.code
        cp -r {root} {tmp_path}/full
        [ {meets} = metadata ] || exit 0
        mount -o remount,size=100m {root} || exit 77
        {train}; echo $? > {tmp_path}/space.code
        cp -r {root} {tmp_path}/space
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "full.code").read_text().strip() == "2"
    message = " ".join((tmp_path / "full.err").read_text().split())
    assert (
        "No space left on device" in message
        and "training goes on" in message
        and "Traceback" not in message
    )
    found = checkpoint.list_checkpoints(tmp_path / "full")
    assert [checkpoint.read_manifest(each).update for each in found] == [3, 6]
    for each in found:
        checkpoint.verify_files(each, checkpoint.read_manifest(each))
    assert not list((tmp_path / "full").glob("*.incomplete"))
    if meets == "metadata":  # once is enough: it is a resume like any other
        assert (tmp_path / "space.code").read_text().strip() == "0", done.stderr
        newest = checkpoint.list_checkpoints(tmp_path / "space")[-1]
        assert state_checksums(newest) == state_checksums(last(uninterrupted))


def room_for(whole: Path, meets: str) -> int:
    """Bytes of a tmpfs on which two checkpoints like `whole` fit, and of the third what
    comes before `meets`.
    """

    def pages(paths: Iterable[Path]) -> int:
        return (
            sum(-(-path.stat().st_size // 4096) for path in paths if path.is_file())
            * 4096
        )

    every = pages(whole.rglob("*"))
    data = pages(whole.rglob("*.distcp"))
    third = {
        "data": data // 2,
        "metadata": data + 4096,
        "manifest": every - pages([whole / "manifest.json"]),
    }
    return 2 * every + third[meets] // 4096 * 4096


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
