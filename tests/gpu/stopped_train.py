"""`alia-ctx train`, whose launcher is told to stop while the nth update is computed, as a
queue or a person tells it:

    python -m alia_ctx.cli.launch --nproc-per-node=2 -m tests.gpu.stopped_train 5 train ...

The update waits until the launcher has passed it on, so that it is known which one is last.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from alia_ctx.cli import main
from alia_ctx.mcore.engine import MegatronEngine

_LIMIT = 60.0  # seconds that passing on may take


def stop_in(update: int) -> None:
    """Let the first rank ask its launcher in its nth update."""
    original, calls = MegatronEngine.train_update, 0

    def signalled(engine: MegatronEngine, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == update and engine.rank == 0:
            _ask_and_wait()
        return original(engine, *arguments)

    MegatronEngine.train_update = signalled  # type: ignore[method-assign]


def _ask_and_wait() -> None:
    handle: Any = signal.getsignal(signal.SIGTERM)
    heard: list[int] = []

    def hear(number: int, frame: Any) -> None:
        heard.append(number)
        handle(number, frame)

    signal.signal(signal.SIGTERM, hear)
    os.kill(os.getppid(), signal.SIGTERM)
    began = time.monotonic()
    while not heard:
        assert time.monotonic() - began < _LIMIT, "the launcher passed nothing on"
        time.sleep(0.01)


if __name__ == "__main__":
    stop_in(int(sys.argv.pop(1)))
    main()
