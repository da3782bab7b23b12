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
    """How a command ended: what went wrong, if anything, the first rank's output, and the
    status of the first rank that failed by itself (0 where none did).
    """

    problem: str | None
    output: str
    status: int = 0


class RankGroup:
    """`python ARGUMENTS` on so many ranks for as long as the context is entered, torch's
    variables set as torchrun has them; all are killed at its end, and if this process dies.

    Ranks that read a line of their standard input first get it from `go`, so that they
    can be made ready while others are measured.
    """

    def __init__(self, arguments: Sequence[str], ranks: int) -> None:
        self.arguments, self.ranks = arguments, ranks
        self._entered = contextlib.ExitStack()
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> RankGroup:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {
            "PYTHONPATH": path,
            "WORLD_SIZE": str(self.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        environment.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own default
        with contextlib.ExitStack() as entered:
            self._folder = Path(entered.enter_context(tempfile.TemporaryDirectory()))
            entered.callback(self._kill)
            for rank in range(self.ranks):
                with (
                    (self._folder / f"{rank}.out").open("w") as out,
                    (self._folder / f"{rank}.err").open("w") as err,
                ):
                    process = subprocess.Popen(
                        [sys.executable, *self.arguments],
                        env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.PIPE,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,
                        preexec_fn=_die_with_parent,
                    )
                self._started.append(process)
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.close()

    def go(self) -> None:
        """Let the ranks begin."""
        for process in self._started:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended: `wait` says why
                process.stdin.write(b"go\n")
                process.stdin.flush()

    def wait(
        self,
        *,
        limit: float,
        silence: float | None = None,
        last_word: Callable[[], float] = lambda: 0.0,
    ) -> Ended:
        """How they end: killed after `limit` seconds, after `silence` seconds in which
        `last_word` (a time since the epoch) does not move, and some seconds after one of
        them fails. What the first rank writes to stderr is passed on.
        """
        problem, failed = _wait(self._started, limit, silence, last_word)
        self._kill()
        files = [self._folder / f"{rank}.err" for rank in range(self.ranks)]
        said = [file.read_text(errors="replace") for file in files]
        sys.stderr.write(said[0])
        sys.stderr.flush()
        if failed:
            last = said[failed[0]].strip().rsplit("\n", 1)[-1]
            problem = f"{problem}: rank {failed[0]}: {last or 'no message'}"
        output = (self._folder / "0.out").read_text(errors="replace")
        return Ended(
            problem, output, self._started[failed[0]].returncode if failed else 0
        )

    def _kill(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


def run_ranks(
    arguments: Sequence[str],
    ranks: int,
    *,
    limit: float,
    silence: float | None = None,
    last_word: Callable[[], float] = lambda: 0.0,
) -> Ended:
    """Run `python ARGUMENTS` on so many ranks to its end, as `RankGroup` has it."""
    with RankGroup(arguments, ranks) as group:
        return group.wait(limit=limit, silence=silence, last_word=last_word)


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
