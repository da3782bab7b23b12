"""What `run` and the launcher do with signals while their children work: stand-ins, which
say what they received.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from alia_ctx.errors import AliaError, CheckpointError
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


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        ("exit 75", 75, "start again to go on"),
        ("exit 3", 3, "diverged.*learning rate"),
        ("exit 2", 2, "its messages are above"),
        ("exit 1", 1, "fault of the program"),
        ("exit 137", 137, "SIGKILL.*start again to go on"),
        ("exit 143", 143, "SIGTERM.*start again to go on"),
        ("kill -9 $$", 137, "SIGKILL.*start again to go on"),
        ("kill -11 $$", 139, "SIGSEGV.*start again to go on"),
        ("exit 7", 7, "its messages are above"),
        ("exit 255", 255, "its messages are above"),
    ],
)
def test_run_ends_with_the_status_of_what_it_started_and_says_what_to_do(
    ending: str,
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = tmp_path / "python"
    child.write_text(f"#!/bin/sh\n{ending}\n")
    child.chmod(0o755)
    monkeypatch.setattr(pipeline.sys, "executable", str(child))
    with pytest.raises(AliaError) as caught:
        pipeline.torchrun(1, ["train", "c", "--stage", "s"])
    assert caught.value.exit_code == status
    assert isinstance(caught.value, RequeueError) == (status == 75)
    message = str(caught.value)
    assert f"`alia-ctx train c --stage s` stopped with exit status {status}" in message
    assert re.search(said, message)


@pytest.mark.parametrize(
    ("status", "passed_on"), [(0, 75), (75, 75), (143, 75), (130, 75), (2, 2), (3, 3)]
)
def test_a_mistake_is_told_though_somebody_asked_to_stop(
    status: int, passed_on: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a last save that failed: to start it again would not go on from there."""
    child = tmp_path / "python"
    child.write_text(CHILD.format(folder=tmp_path).replace("exit 75", f"exit {status}"))
    child.chmod(0o755)
    monkeypatch.setattr(pipeline.sys, "executable", str(child))

    def stop() -> None:
        wait_for(tmp_path / "ready")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(AliaError) as caught:
        pipeline.torchrun(1, ["train", "c", "--stage", "s"])
    thread.join()
    assert caught.value.exit_code == passed_on
    assert isinstance(caught.value, RequeueError) == (passed_on == 75)


COUNTS = """#!/usr/bin/env bash
trap 'echo TERM >> {folder}/received' TERM
trap 'exit 75' HUP
touch {folder}/ready
while true; do sleep 0.05; done
"""
WARNED, ASKED = signal.SIGUSR1, signal.SIGTERM


@pytest.mark.parametrize(
    ("numbers", "received"),
    [
        ([WARNED, ASKED], 1),  # the ranks save already
        ([WARNED, WARNED], 1),
        ([signal.SIGUSR2, signal.SIGINT], 1),
        ([ASKED, WARNED], 1),
        ([ASKED, ASKED], 2),
        ([WARNED, ASKED, ASKED], 2),
        ([signal.SIGHUP, ASKED], 2),
    ],
)
def test_a_warning_is_not_the_first_of_two_requests(
    numbers: list[signal.Signals],
    received: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child, said = tmp_path / "python", tmp_path / "received"
    child.write_text(COUNTS.format(folder=tmp_path))
    child.chmod(0o755)
    monkeypatch.setattr(pipeline.sys, "executable", str(child))
    own = os.getpid()

    def stop() -> None:
        wait_for(tmp_path / "ready")
        for number in numbers:
            os.kill(own, number)
            time.sleep(0.4)
        for each in psutil.Process(own).children():
            if str(child) in each.cmdline():
                each.send_signal(signal.SIGHUP)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(RequeueError, match=f"stopped by {numbers[0].name}"):
        pipeline.torchrun(1, ["train", "run.yaml", "--stage", "short"])
    thread.join()
    assert said.read_text() == "TERM\n" * received


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


STOPPABLE = """
import os, pathlib, sys, time
from alia_ctx.train.stopping import StopRequests
folder = pathlib.Path({folder!r})
with StopRequests() as stop:
    (folder / ("ready-" + os.environ["RANK"])).write_text(str(os.getpid()))
    while stop.reason() is None:
        time.sleep(0.05)
    time.sleep({seconds})  # the update, and its save
    (folder / ("saved-" + os.environ["RANK"])).touch()
sys.exit(75)
"""


@pytest.mark.parametrize(
    ("then", "saves"), [([], True), ([ASKED], True), ([ASKED, ASKED], False)]
)
def test_ranks_save_after_a_warning_and_none_outlives_the_launcher(
    then: list[signal.Signals], saves: bool, tmp_path: Path
) -> None:
    body = STOPPABLE.format(folder=str(tmp_path), seconds=5 if saves else 30)
    (tmp_path / "rank.py").write_text(body)
    launcher = [sys.executable, "-m", "alia_ctx.cli.launch", "--standalone"]
    with subprocess.Popen(
        [*launcher, "--nproc-per-node=2", str(tmp_path / "rank.py"), "train"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        ready = [tmp_path / f"ready-{rank}" for rank in (0, 1)]
        try:
            for file in ready:
                wait_for(file, 120)
            for number in (WARNED, *then):
                process.send_signal(number)
                time.sleep(2)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 75, said
    assert not [file for file in ready if psutil.pid_exists(int(file.read_text()))]
    assert [(tmp_path / f"saved-{rank}").exists() for rank in (0, 1)] == [saves] * 2
