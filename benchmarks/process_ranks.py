"""A command on several ranks of this machine, within a time-out, with none of its processes
left behind: a rank that waits for another in NCCL hears no signal but SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRACE = 10.0  # seconds that ranks may take to end after the first that failed


@dataclass(frozen=True)
class Ended:
    """How a command ended: what went wrong, if anything, and the first rank's output."""

    problem: str | None
    output: str


def run_ranks(
    arguments: Sequence[str],
    ranks: int,
    *,
    limit: float,
    silence: float | None = None,
    last_word: Callable[[], float] = lambda: 0.0,
) -> Ended:
    """Run `python ARGUMENTS` on so many ranks, torch's variables set as torchrun has them.

    All are killed after `limit` seconds, after `silence` seconds in which `last_word`
    (a time since the epoch) does not move, some seconds after one of them fails, and if
    this process dies. What the first rank writes to stderr is passed on.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        ),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own default
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), []
        try:
            for rank in range(ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with (
                    (folder / f"{rank}.out").open("w") as out,
                    (folder / f"{rank}.err").open("w") as err,
                ):
                    process = subprocess.Popen(
                        [sys.executable, *arguments],
                        env=environment | own,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,
                        preexec_fn=_die_with_parent,
                    )
                started.append(process)
            problem, failed = _wait(started, limit, silence, last_word)
        finally:
            for process in started:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said = [(folder / f"{rank}.err").read_text() for rank in range(ranks)]
        sys.stderr.write(said[0])
        sys.stderr.flush()
        if failed:
            last = said[failed[0]].strip().rsplit("\n", 1)[-1]
            problem += f": rank {failed[0]}: {last or 'no message'}"
        return Ended(problem, (folder / "0.out").read_text())


def _wait(
    started: list[subprocess.Popen[bytes]],
    limit: float,
    silence: float | None,
    last_word: Callable[[], float],
) -> tuple[str | None, list[int]]:
    """What went wrong, and the ranks that failed by themselves."""
    began = time.time()
    first_failure: float | None = None
    while None in (codes := [process.poll() for process in started]):
        now = time.time()
        if first_failure is None and any(codes):
            first_failure = now
        if first_failure is not None and now - first_failure > _GRACE:
            break
        if now - began > limit:
            return f"killed after {limit:.0f} s", []
        if silence is not None and now - max(began, last_word()) > silence:
            return f"killed after {silence:.0f} s without a word", []
        time.sleep(0.1)
    failed = [rank for rank, code in enumerate(codes) if code]
    if not failed:
        return None, []
    return f"ended with status {codes[failed[0]]}", failed


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
