"""NaN gradients, damaged checkpoints, a full disk: loud, and nothing is lost."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint
from tests.small_run import (
    alia,
    command,
    environment,
    metrics,
    state_checksums,
    write_run,
)
from tests.train.runs import StopAfter, last, numbers, start


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
