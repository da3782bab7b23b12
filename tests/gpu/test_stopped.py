"""A stage on two GPUs that is told to stop saves and goes on, by another layout as well."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint
from alia_ctx.train.stopping import REQUEUE
from tests.paths import ROOT
from tests.small_run import alia, metrics, write_run

pytestmark = [pytest.mark.gpu(2), pytest.mark.timeout(600)]

UPDATES, STOP = 10, 5
# Relative, fp32: sums in another order only.
TOLERANCE = 1e-5


def settings(device: str) -> list[str]:
    return [
        "stages.short.context=256",
        "stages.short.update_tokens=1024",  # four rows
        f"stages.short.tokens={1024 * UPDATES}",
        "model.hidden_size=256",
        "model.head_dim=64",
        "checkpoint.every_updates=100",  # no other save than that of the request
        f"engine.device={device}",
        "engine.attention=reference",
        "stages.short.learning_rate=1e-4",
    ]


def packed(folder: Path, device: str) -> list[str]:
    """The arguments of `train`, once the rows of the stage are planned."""
    folder.mkdir()
    run = [str(write_run(folder)), *settings(device), "--stage", "short"]
    done = alia("pack", *run)
    assert done.returncode == 0, done.stderr
    return ["train", *run]


def stopped(arguments: list[str]) -> tuple[int, str]:
    """Status and words of a start on two ranks that is told to stop in update STOP."""
    launcher = ["-m", "alia_ctx.cli.launch", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "tests.gpu.stopped_train", str(STOP), *arguments]
    done = subprocess.run(
        [sys.executable, *launcher, *program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NCCL_NVLS_ENABLE": "0"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stderr


def stop_and_go_on(folder: Path, device: str) -> None:
    """Begun as TP2, told to stop, gone on as CP2; beside one GPU undisturbed."""
    single, two = folder / "single", folder / "two"
    with ThreadPoolExecutor(1) as beside:
        alone = beside.submit(undisturbed, single, device)
        train = [*packed(two, device), "cluster.ranks_per_node=2"]
        before = stop_and_resume(train, two)
        compare(alone.result(), before, metrics(two))


def undisturbed(folder: Path, device: str) -> list[dict[str, Any]]:
    """The log of the same stage on one GPU."""
    done = alia(*packed(folder, device), timeout=200)
    assert done.returncode == 0, done.stderr
    return metrics(folder)


def stop_and_resume(train: list[str], folder: Path) -> list[dict[str, Any]]:
    """The log as it was when the stage had stopped, which then goes on to its end."""

    status, said = stopped([*train, "stages.short.layout.tp=2"])
    assert status == REQUEUE, said
    words = f"stopped by SIGTERM after update {STOP}; saved, start again to go on"
    assert words in said
    assert "Traceback" not in said
    checkpoints = checkpoint.list_checkpoints(folder / "out/stages/short/checkpoints")
    assert [checkpoint.update_of(c) for c in checkpoints][-1] == STOP
    before = metrics(folder)
    assert [line["update"] for line in before] == list(range(1, STOP + 1))

    done = alia(*train, "stages.short.layout.cp=2", ranks=2, timeout=200)
    assert done.returncode == 0, done.stderr
    return before


def compare(
    expected: list[dict[str, Any]],
    before: list[dict[str, Any]],
    got: list[dict[str, Any]],
) -> None:
    assert got[:STOP] == before, "what was saved was computed again"
    assert (got[STOP]["layout"]["cp"], got[STOP]["layout"]["tp"]) == (2, 1)
    assert [line["update"] for line in got] == list(range(1, UPDATES + 1))
    for line, other in zip(expected, got, strict=True):
        print(line["update"], line["loss"], other["loss"])
        assert other["tokens"] == line["tokens"]
        for name in ("loss", "gradient_norm"):
            assert other[name] == pytest.approx(line[name], rel=TOLERANCE)


def test_told_to_stop_it_saves_and_goes_on_as_one_gpu_does(tmp_path: Path) -> None:
    stop_and_go_on(tmp_path, "cuda")
