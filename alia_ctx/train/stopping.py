"""Why a run should stop or is stuck:

signals, time limits, and a watchdog. Nothing here saves anything.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from alia_ctx.errors import AliaError, ConfigError, Problem
from alia_ctx.train.faults import RankName, fault, record_fault

# EX_TEMPFAIL of sysexits.h: what launch/slurm_stage.sbatch takes as "put me back in the queue"
REQUEUE = 75
_LAST_WORDS_SECONDS = 10.0
LEAVING_SECONDS = 60.0  # at most, from the loss of other ranks to the end of this one
# One request comes more than once: from the terminal, which tells every process, and from
# the launcher, which passes on what it was told. Later than this it is another.
ONE_REQUEST_SECONDS = 1.0


class RequeueError(AliaError):
    """The run stopped early on request, with everything saved; starting it again goes on."""

    exit_code = REQUEUE


def record_status(status: int) -> None:
    """Leave the exit status that this rank has decided on in ALIA_STATUS_DIR, if there is
    one: srun tells the highest of all ranks alone, which may be that of one it killed.
    """
    folder, rank = os.environ.get("ALIA_STATUS_DIR"), os.environ.get("RANK")
    if folder and rank:
        with suppress(OSError):
            Path(folder, rank).write_text(f"{status}\n", encoding="utf-8")


def leave_within(seconds: float, status: int) -> None:
    """End this process with `status` after so many seconds, should it be there still."""
    timer = threading.Timer(seconds, lambda: os._exit(status))
    timer.daemon = True
    timer.start()


def requeue_on_early_signals() -> None:
    """Let a request to stop end the process at once, with status REQUEUE, as long as
    nothing has been done: imports alone take seconds. StopRequests takes over.
    """
    for number in StopRequests.SIGNALS:
        signal.signal(number, _leave)


def _leave(number: int, frame: Any) -> None:
    name = signal.Signals(number).name
    message = f"stopped by {name} before the work began; start again to go on\n"
    with suppress(OSError):
        os.write(2, message.encode())
    record_status(REQUEUE)  # the ranks that wait for this one may have to be killed
    os._exit(REQUEUE)


class StopRequests(AbstractContextManager["StopRequests"]):
    """Collects reasons to stop after the current update: SIGTERM, SIGINT (Ctrl-C),
    SIGUSR1 or SIGUSR2 (SLURM's warning), and a time limit.

    The time limit counts from the start of this process and leaves room for what
    `allow` says is still to come. A second SIGTERM or SIGINT ends the process at once,
    as the first would have done without us. A warning before is not the first of them:
    when the time is up SLURM asks with SIGTERM.
    """

    WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
    SIGNALS = (signal.SIGTERM, signal.SIGINT, *WARNINGS)

    def __init__(self, limit_seconds: float | None = None) -> None:
        # From here on by a clock that nobody sets: the wall clock of a node may step.
        self._deadline = (
            None
            if limit_seconds is None
            else time.monotonic() - _seconds_since_start() + limit_seconds
        )
        self._received: str | None = None
        self._asked_at: float | None = None  # of the first SIGTERM or SIGINT
        self._previous: dict[int, Any] = {}
        # What a second request loses, in words; asked in a signal's handler, so that it
        # may wait for nothing.
        self.lost: Callable[[], str] = str

    @property
    def is_limited(self) -> bool:
        """Whether there is a time limit."""
        return self._deadline is not None

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._receive) for number in self.SIGNALS
            }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            if handler is not _leave:  # it is late now: what is done shall stay done
                signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        warns, now = number in self.WARNINGS, time.monotonic()
        if not warns and self._asked_at is not None:
            if now - self._asked_at > ONE_REQUEST_SECONDS:
                with suppress(Exception):  # nothing keeps it from ending
                    if os.environ.get("RANK", "0") == "0" and (lost := self.lost()):
                        os.write(2, f"\nstopped at once: {lost}\n".encode())
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        is_first = self._received is None
        if not warns:
            self._asked_at = now
        self._received = self._received or signal.Signals(number).name
        if is_first or not warns:
            with suppress(OSError):  # not by `print`, which may have been interrupted
                os.write(2, self._answer(number).encode())

    def _answer(self, number: int) -> str:
        """What a person who asked hears at once, of the first rank."""
        if os.environ.get("RANK", "0") != "0":
            return ""
        more = "" if number in self.WARNINGS else "; once more stops at once"
        name = signal.Signals(number).name
        return f"\n{name}: stopping after this update, which is saved{more}\n"

    def reason(self, still_to_come: float = 0.0) -> str | None:
        """Why to stop now, or None.

        `still_to_come`: seconds that another update, an evaluation after it if there is
        one, and the last save would take.
        """
        if self._received is not None:
            return self._received
        if self._deadline is None:
            return None
        if time.monotonic() + still_to_come >= self._deadline:
            return "the time limit"
        return None


def _seconds_since_start() -> float:
    """How long this process runs, never below 0 whatever was done to the clock."""
    import psutil

    started: float = psutil.Process().create_time()
    return max(0.0, time.time() - started)


def parse_duration(text: str) -> float:
    """Seconds of `HH:MM:SS` or `D-HH:MM:SS`, the way SLURM writes a time limit;

    ConfigError for anything else.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d{1,4}):([0-5]?\d):([0-5]?\d)", text.strip())
    if not match:
        raise ConfigError(
            "",
            [
                Problem(
                    "--exit-before",
                    text,
                    "is not a duration",
                    "write HH:MM:SS, as in 23:50:00",
                )
            ],
        )
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


class Watchdog(AbstractContextManager["Watchdog"]):
    """Ends this process when it has not called `beat` for `limit_seconds`, after dumping
    the stack of every thread.

    Each rank has its own; a hung collective hangs them all, so each leaves its stacks
    in `folder` (on standard error where it cannot), says whether it waits for others or
    where else it is, and the job ends instead of holding its nodes. The exit status is
    REQUEUE: the last checkpoint is whole.

    Args:
        limit_seconds: without a sign of life.
        folder: the stage's, or wherever stacks and the record of the fault may go.
        rank: of this process.
        update: gives the updates that are done.
    """

    def __init__(
        self,
        limit_seconds: float,
        folder: Path,
        rank: int,
        update: Callable[[], int] = lambda: 0,
    ) -> None:
        self.limit, self.rank = limit_seconds, rank
        self.folder, self.update = folder, update
        self.name = RankName(rank, "", "")
        self._watched = threading.get_ident()
        self.path = folder / f"hang-rank-{rank}.txt"
        self._deadline = time.monotonic() + limit_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="watchdog", daemon=True
        )

    def __enter__(self) -> Watchdog:
        self.name = RankName.of_this_process(
            self.rank
        )  # a GPU that hangs tells no more
        self._watched = threading.get_ident()
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self) -> None:
        """A sign of life: the limit counts from now."""
        self._deadline = time.monotonic() + self.limit

    def allow(self, seconds: float) -> None:
        """As `beat`, for what is known to take `seconds` more than the limit without one."""
        self._deadline = time.monotonic() + self.limit + seconds

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.limit / 4)):
            if time.monotonic() > self._deadline:
                self._give_up()

    def _give_up(self) -> None:
        """Leave the stacks and end, whatever happens to the leaving: the file system may
        be what hangs.
        """
        try:
            leaving = threading.Thread(target=self._leave_stacks, daemon=True)
            leaving.start()
            leaving.join(_LAST_WORDS_SECONDS)
        finally:
            os._exit(REQUEUE)

    def _leave_stacks(self) -> None:
        record_status(REQUEUE)
        doing = _doing(self._watched)
        what = f"no progress for {self.limit:.0f} s, {doing}"
        message = f"{self.name}: {what}; stacks of all"
        line = fault("hung", self.name, self.update(), f"{self.name}: {what}")
        record_fault(self.folder, self.rank, line)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", encoding="utf-8") as stream:
                stream.write(f"{message} threads:\n")
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)
            print(f"{message} threads are in {self.path}", file=sys.stderr, flush=True)
        except OSError as error:
            print(
                f"{message} threads follow, as {self.path} cannot be written "
                f"({error.strerror or error})",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(2, all_threads=True)


# Files of torch and Megatron in which a thread waits for other ranks.
_WAITING = re.compile(r"torch/distributed/|megatron/core/pipeline_parallel/p2p_")


def waits_for_others(thread: int) -> str | None:
    """The function in which a thread waits for other ranks; None where it does not."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if _WAITING.search(frame.f_code.co_filename):
            return frame.f_code.co_name
        frame = frame.f_back
    return None


def place_of(thread: int) -> str:
    """The function and the line that a thread is in."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    code = frame.f_code
    return f"{code.co_name} ({code.co_filename}:{frame.f_lineno})"


def _doing(thread: int) -> str:
    """Where a thread is: whether it waits for other ranks, or in which line it is."""
    if waits := waits_for_others(thread):
        return f"waiting for other ranks in {waits}"
    return f"not waiting for others, in {place_of(thread)}"
