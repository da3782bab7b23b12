"""What `run` and the launcher do with signals while their children work: stand-ins, which
say what they received.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alia_ctx.errors import CheckpointError
from alia_ctx.train.stopping import RequeueError
from alia_ctx.workflow import pipeline
from tests.small_run import environment

CHILD = """#!/usr/bin/env bash
trap 'echo TERM >> {folder}/received; exit 75' TERM
echo "$*" > {folder}/arguments
touch {folder}/ready
while true; do sleep 0.05; done
"""


def wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_run_passes_a_signal_on_waits_and_asks_to_be_started_again(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "python"
    child.write_text(CHILD.format(folder=tmp_path))
    child.chmod(0o755)
    monkeypatch.setattr(pipeline.sys, "executable", str(child))
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)]

    def stop() -> None:
        wait_for(tmp_path / "ready")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(RequeueError, match=f"stopped by {number.name}") as caught:
        pipeline.torchrun(3, ["train", "run.yaml", "--stage", "short"])
    thread.join()
    assert caught.value.exit_code == 75
    assert "`alia-ctx train run.yaml --stage short` with it (exit status 75)" in str(
        caught.value
    )
    assert (tmp_path / "received").read_text() == "TERM\n"
    assert (
        "--nproc-per-node=3 -m alia_ctx.cli train run.yaml --stage short"
        in (tmp_path / "arguments").read_text()
    )
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_child_that_fails_unasked_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\nexit 3\n")
    child.chmod(0o755)
    monkeypatch.setattr(pipeline.sys, "executable", str(child))
    with pytest.raises(
        CheckpointError, match="`alia-ctx evaluate c` stopped with exit"
    ):
        pipeline.torchrun(1, ["evaluate", "c"])


RANK = """
import os, pathlib, time
pathlib.Path({folder!r}, "ready-" + os.environ["RANK"]).touch()
time.sleep(120)
"""


def test_the_launcher_asks_for_a_requeue_of_training_alone(tmp_path: Path) -> None:
    """SIGTERM ends it with 75 around `train`, as a signal would around anything else."""
    launched = {}
    for word in ("train", "evaluate"):
        folder = tmp_path / word
        folder.mkdir()
        (folder / "rank.py").write_text(RANK.format(folder=str(folder)))
        launcher = [sys.executable, "-m", "alia_ctx.cli.launch", "--standalone"]
        launched[word] = subprocess.Popen(
            [*launcher, "--nproc-per-node=2", str(folder / "rank.py"), word],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    statuses = {}
    try:
        for word, process in launched.items():
            for rank in (0, 1):
                wait_for(tmp_path / word / f"ready-{rank}", 120)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            statuses[word] = process.returncode, "Traceback" in said
    finally:
        for process in launched.values():
            process.kill()
            process.wait()
    assert statuses == {"train": (75, False), "evaluate": (143, False)}
