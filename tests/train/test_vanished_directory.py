"""A stage that had checkpoints does not begin anew because none is to be seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.small_run import alia, write_run


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    path = write_run(tmp_path)
    assert alia("pack", str(path), "--stage", "short").returncode == 0
    assert alia("train", str(path), "--stage", "short").returncode == 0
    return path


def test_a_directory_that_is_not_mounted_stops_the_start(
    trained: Path, tmp_path: Path
) -> None:
    stage, away = tmp_path / "out" / "stages" / "short", tmp_path / "away"
    log, mount = (stage / "metrics.jsonl").read_bytes(), tmp_path / "mount"
    shutil.move(stage / "checkpoints", away)

    def start_is_refused() -> None:
        done = alia("train", str(trained), "--stage", "short")
        assert done.returncode == 2, done.stderr
        assert f"move {stage} away to begin the stage anew" in done.stderr
        assert "Traceback" not in done.stderr
        assert (stage / "metrics.jsonl").read_bytes() == log

    start_is_refused()
    (stage / "checkpoints").symlink_to(mount)  # which dangles
    start_is_refused()
    mount.mkdir()
    start_is_refused()
    (stage / "checkpoints").unlink()
    shutil.move(away, stage / "checkpoints")
    assert alia("train", str(trained), "--stage", "short").returncode == 0
    spoil_all_and_follow_the_advice(trained, stage)
    assert alia("train", str(trained), "--stage", "short").returncode == 0


def spoil_all_and_follow_the_advice(config: Path, stage: Path) -> None:
    """What is advised where every checkpoint is damaged is what begins the stage anew."""
    for manifest in (stage / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("{")
    done = alia("train", str(config), "--stage", "short")
    assert done.returncode == 2 and "every checkpoint in" in done.stderr
    assert f"restore one, or move {stage} away to begin the stage anew" in done.stderr
    stage.rename(stage.with_name("away"))
