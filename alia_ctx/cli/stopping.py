"""How a command ends that is stopped by a signal: in one line, and with the status that
shells give to it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

from alia_ctx.errors import StopRequest


class Stopped(StopRequest):
    """That of a signal: contexts on the way take down what is theirs."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_on_sigterm() -> None:
    """Have SIGTERM end this process by `Stopped`; on one of several ranks at once, as the
    others, who are told too, would wait for it. A second one ends it in any case.
    """
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    if "RANK" not in os.environ:
        raise Stopped(number)
    if os.environ["RANK"] == "0":
        with suppress(OSError):
            os.write(2, _line(number).encode())
    os._exit(128 + number)


def end_stopped(stopped: Stopped) -> NoReturn:
    print(_line(stopped.number), end="", file=sys.stderr, flush=True)
    sys.exit(128 + stopped.number)


def _line(number: int) -> str:
    name = signal.Signals(number).name
    return f"\nstopped by {name}; what is finished stays, start again to go on\n"
