"""Runs of stage `short`, which the tests of the trainer share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from alia_ctx.errors import AliaError
from tests.distributed import run_distributed
from tests.small_run import (
    metrics,
)


def train(
    rank: int,
    path: str,
    overrides: list[str],
    sabotage: Callable[[int], None] | None = None,
    exit_before: float | None = None,
) -> str:
    """Train stage `short`; the message of the error that stopped it, or nothing."""
    if sabotage is not None:
        sabotage(rank)
    try:
        workflow.train(load_run(path, overrides), "short", exit_before=exit_before)
    except AliaError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def start(
    path: Path,
    *overrides: str,
    ranks: int = 1,
    sabotage: Any = None,
    exit_before: float | None = None,
) -> str:
    run = load_run(path, overrides)
    if not (Path(run.output) / "plans" / "short").is_dir():
        workflow.pack(run, "short")
    return run_distributed(
        train, ranks, str(path), list(overrides), sabotage, exit_before, timeout=200
    )[0]


def last(folder: Path) -> Path:
    return checkpoint.list_checkpoints(
        folder / "out" / "stages" / "short" / "checkpoints"
    )[-1]


def numbers(folder: Path) -> list[tuple[Any, ...]]:
    """What must not depend on how often a run was stopped."""
    keys = ("update", "loss", "gradient_norm", "tokens", "predicted_tokens", "rows")
    return [tuple(map(str, (line[k] for k in keys))) for line in metrics(folder)]


class StopAfter:
    """Sends SIGUSR1, as SLURM would, to rank 0 in the nth update of this process."""

    def __init__(self, updates: int, number: int = signal.SIGUSR1) -> None:
        self.updates, self.number = updates, number

    def __call__(self, rank: int) -> None:
        from alia_ctx.mcore.engine import MegatronEngine

        original, calls = MegatronEngine.train_update, [0]

        def signalled(engine: Any, *args: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.updates and rank == 0:
                os.kill(os.getpid(), self.number)
            return original(engine, *args)

        MegatronEngine.train_update = signalled  # type: ignore[method-assign]
