"""The program that disturbs a stage: two fixed rounds of it, and that its judge can fail."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disturbed_stage import BrokenPromiseError, Ended, Stage
from tests.paths import ROOT
from tests.small_run import environment


def test_two_rounds_of_chaos_hold() -> None:
    """With this seed: kills, then files that one rank does not see."""
    done = subprocess.run(
        [sys.executable, "benchmarks/chaos.py", "--rounds", "2", "--seed", "0"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| all |")]
    assert [row.split(" | ")[1:5] for row in rows] == [["2", "1", "1", "0"]]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """One whose checkpoint and log are a file each."""
    base, folder = tmp_path / "base", tmp_path / "round"
    (base / "out/stages/short/checkpoints/update-00000003").mkdir(parents=True)
    (base / "out/stages/short/metrics.jsonl").write_text("{}\n")
    (base / "out/stages/short/checkpoints/update-00000003/manifest.json").write_text("")
    return Stage(base / "run.yaml", folder, random.Random(0), tmp_path / "calm")


REFUSED = Ended(
    2, "rank 0: CheckpointError: this is so\nrank 1: CheckpointError: this is so"
)


def test_a_refusal_with_nothing_lost_is_taken_for_one(stage: Stage) -> None:
    stage.must_refuse(REFUSED, stage.contents(), "this is so")


@pytest.mark.parametrize(
    "status,said",
    [
        (0, REFUSED.said),
        (None, REFUSED.said),
        (2, f"{REFUSED.said}\nTraceback (most recent call last):"),
        (2, "rank 0: CheckpointError: that is so"),
        (2, f"{REFUSED.said}\nrank 2: OSError: this is so too"),
        (2, "this is so"),
    ],
)
def test_what_is_no_clear_refusal_breaks_the_promise(
    status: int | None, said: str, stage: Stage
) -> None:
    with pytest.raises(BrokenPromiseError):
        stage.must_refuse(Ended(status, said), stage.contents(), "this is so")


LOSSES: dict[str, Callable[[Stage], object]] = {
    "a line": lambda stage: (stage.directory / "metrics.jsonl").write_text(""),
    "a file": lambda stage: (stage.found[0] / "manifest.json").unlink(),
    "a name": lambda stage: stage.found[0].rename(stage.root / "update-3.damaged"),
    "a place": lambda stage: (stage.root / "update-00000004.incomplete").mkdir(),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_a_refusal_that_changed_something_breaks_the_promise(
    lost: str, stage: Stage
) -> None:
    before = stage.contents()
    LOSSES[lost](stage)
    with pytest.raises(BrokenPromiseError, match="changed by a refused start"):
        stage.must_refuse(REFUSED, before, "this is so")
