"""Requests to stop at any moment, and a watchdog that barks whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from alia_ctx.train.stopping import REQUEUE, StopRequests
from alia_ctx.workflow.training import unsaved
from tests.small_run import command, environment, metrics, write_run
from tests.train.runs import start

WATCH = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from alia_ctx.train import stopping

stopping._LAST_WORDS_SECONDS = 1.0
with stopping.Watchdog(float(sys.argv[2]), Path(sys.argv[1]), 0) as watchdog:
    {body}
"""


def watch(folder: Path, limit: float, body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WATCH.format(body=body), str(folder), str(limit)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_watchdog_that_cannot_write_ends_the_process_all_the_same(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    done = watch(tmp_path / "file/stage", 0.2, "time.sleep(90)")
    assert done.returncode == REQUEUE
    assert "no progress" in done.stderr and "cannot be written" in done.stderr
    assert 'File "<string>"' in done.stderr, "the stacks are on standard error instead"


def test_a_watchdog_does_not_wait_for_a_file_system_that_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hang-rank-0.txt")  # opening it blocks, as a dead mount does
    assert watch(tmp_path, 0.2, "time.sleep(90)").returncode == REQUEUE


def test_a_watchdog_without_standard_error(tmp_path: Path) -> None:
    body = "sys.stderr.close(); time.sleep(90)"
    assert watch(tmp_path / "stage", 0.2, body).returncode == REQUEUE


def test_beats_and_allowances_keep_a_process_alive(tmp_path: Path) -> None:
    body = "[(time.sleep(0.2), watchdog.beat()) for _ in range(15)]"
    assert watch(tmp_path, 2.0, body).returncode == 0
    assert watch(tmp_path, 1.0, "watchdog.allow(60); time.sleep(3)").returncode == 0
    body = "watchdog.allow(60); watchdog.beat(); time.sleep(90)"
    assert watch(tmp_path, 1.0, body).returncode == REQUEUE


def catches(pid: int, number: int) -> bool:
    """Whether the process handles a signal (Linux's mask of caught ones)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@pytest.mark.parametrize(
    "number,later,ranks",
    [
        (signal.SIGTERM, 0.0, 1),
        (signal.SIGTERM, 0.5, 1),
        (signal.SIGUSR1, 0.0, 1),
        (signal.SIGTERM, 0.0, 2),
    ],
)
def test_a_signal_in_the_first_second_is_a_requeue(
    number: signal.Signals, later: float, ranks: int, tmp_path: Path
) -> None:
    """From the first line of the command on, while its imports take seconds; with two
    ranks it meets the launcher.
    """
    path = write_run(tmp_path)
    with subprocess.Popen(
        command("train", str(path), "--stage", "short", ranks=ranks),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not catches(process.pid, number) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(later)
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == REQUEUE, errors
    assert f"stopped by {number.name} before the work began" in errors
    assert "torch/distributed/elastic" not in errors, "what torchrun logs of it"
    assert not (tmp_path / "out").exists(), "nothing was done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("later", "ends"), [(0.0, False), (1.2, True)])
def test_the_same_request_twice_and_a_second_one(
    number: signal.Signals, later: float, ends: bool
) -> None:
    """A terminal tells every process, and the launcher tells them again."""
    body = (
        "import os, time; from alia_ctx.train.stopping import StopRequests\n"
        "with StopRequests() as stop:\n"
        f"    os.kill(os.getpid(), {number:d}); time.sleep({later})\n"
        f"    os.kill(os.getpid(), {number:d}); print(stop.reason())"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (
        (-number, "") if ends else (0, f"{number.name}\n")
    )
    assert done.stderr.count("once more stops at once") == 1


@pytest.mark.parametrize(
    ("whole", "update", "said"),
    [
        (None, 0, ""),
        (None, 2, "updates 1 to 2 are not saved; another start does them again after "),
        ("update-00000003", 3, ""),
        ("update-00000003", 4, "update 4 is not saved"),
        ("update-00001000", 1203, "updates 1,001 to 1,203 are not saved"),
    ],
)
def test_which_updates_would_be_lost(whole: str | None, update: int, said: str) -> None:
    place = None if whole is None else Path("checkpoints", whole)
    trainer: Any = SimpleNamespace(
        update=update, checkpoints=SimpleNamespace(whole=place)
    )
    told = unsaved(trainer)
    assert told.startswith(said) and bool(told) == bool(said)


@pytest.mark.parametrize("lost", ['"updates 3 to 5 are not saved"', '""', "1 / 0"])
def test_a_second_request_says_what_it_loses(lost: str) -> None:
    """Whatever becomes of the saying, it ends."""
    body = (
        "import os, time; from alia_ctx.train.stopping import StopRequests\n"
        "with StopRequests() as stop:\n"
        f"    stop.lost = lambda: {lost}\n"
        "    os.kill(os.getpid(), 2); time.sleep(1.2); os.kill(os.getpid(), 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGINT
    said = "stopped at once: updates 3 to 5 are not saved" in done.stderr
    assert said == ("3 to 5" in lost)


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        (["SIGUSR1", "SIGTERM"], False),
        (["SIGUSR2", "SIGINT"], False),
        (["SIGTERM", "SIGUSR1"], False),
        (["SIGUSR1", "SIGUSR1"], False),
        (["SIGUSR1", "SIGTERM", "SIGINT"], True),
    ],
)
def test_a_warning_is_not_the_first_of_two_requests(
    names: list[str], ends: bool
) -> None:
    body = (
        "import os, signal, time; from alia_ctx.train.stopping import StopRequests\n"
        "with StopRequests() as stop:\n"
        f"    for name in {names}:\n"
        "        os.kill(os.getpid(), getattr(signal, name)); time.sleep(1.2)\n"
        "    print(stop.reason())"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, timeout=60
    )
    status = -getattr(signal, names[-1]) if ends else 0
    assert (done.returncode, done.stdout) == (status, "" if ends else f"{names[0]}\n")
    asks = any(name in ("SIGTERM", "SIGINT") for name in names)
    assert done.stderr.count("once more stops at once") == int(asks)


class SlowRows:
    """Makes each row of an evaluation take two seconds."""

    def __call__(self, rank: int) -> None:
        from alia_ctx.mcore.engine import MegatronEngine

        original = MegatronEngine.row_losses

        def slow(engine: Any, *args: Any) -> Any:
            time.sleep(2.0)
            return original(engine, *args)

        MegatronEngine.row_losses = slow  # type: ignore[method-assign]


def test_an_evaluation_longer_than_the_limit_is_no_hang(tmp_path: Path) -> None:
    """Four rows of two seconds under a limit of seven: killed, requeued, killed again."""
    message = start(
        write_run(tmp_path),
        "evaluation.every_updates=12",
        f"engine.hang_minutes={7 / 60}",
        sabotage=SlowRows(),
    )
    assert message == ""
    assert "held_out" in metrics(tmp_path)[-1]


def test_the_time_limit_does_not_follow_a_clock_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time
    running = now() - psutil.Process().create_time()
    requests = StopRequests(running + 1000.0)
    for step in (-3600.0, 3600.0):
        monkeypatch.setattr(time, "time", lambda step=step: now() + step)
        assert requests.reason() is None
        assert requests.reason(still_to_come=1001.0) == "the time limit"
    monkeypatch.setattr(time, "time", now)
    late = time.monotonic() + 1001.0
    monkeypatch.setattr(time, "monotonic", lambda: late)
    assert requests.reason() == "the time limit"
