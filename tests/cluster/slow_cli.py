"""`alia-ctx train` that waits before each update until a test allows it: whatever a machine
is busy with, what befalls a stage befalls it at that update.

    python -m tests.cluster.slow_cli train CONFIG --stage NAME
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from alia_ctx.cli import main

GATE = (
    "UPDATES_ALLOWED"  # a folder with a file a stage: the last update that may be done
)


def allow(folder: Path, stage: str, update: int) -> None:
    """Let the stage go on until it has done so many updates."""
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{stage}"
    temporary.write_text(str(update))
    temporary.replace(folder / stage)


def _wait_at_the_gate() -> None:
    from alia_ctx.train.trainer import StageTrainer

    original, folder = StageTrainer.advance, Path(os.environ[GATE])

    def allowed(stage: str) -> int:
        file = folder / stage
        return int(file.read_text()) if file.is_file() else 0

    def advance(trainer: Any, log: Any) -> None:
        while trainer.update >= allowed(trainer.task.name):
            time.sleep(0.05)
            trainer._beat()
        original(trainer, log)

    StageTrainer.advance = advance  # type: ignore[method-assign]


if __name__ == "__main__":
    _wait_at_the_gate()
    main()
