"""Runs of the whole workflow in one process, for tests of what a second run makes of a first.

A start of the command line takes seconds; here `run_all` calls the commands it would
start, and many scenarios share a process. Each works on a copy of the first run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError
from tests.distributed import run_distributed
from tests.small_run import write_run

SMALL = (
    "cluster.ranks_per_node=1",
    "metrics.sinks=[]",
    "evaluation.documents=4",
    "stages.short.tokens=2048",  # four updates of eight rows
    "stages.long.tokens=1536",  # two updates of three rows
)


def in_small_run(
    scenarios: Callable[[int, str], Any], factory: pytest.TempPathFactory, name: str
) -> Any:
    """What `scenarios` gives on one rank, below a folder of that name with a `run.yaml`."""
    folder = factory.mktemp(name)
    write_run(folder)
    return run_distributed(scenarios, 1, str(folder), timeout=300)[0]


class Run:
    """A copy of a run, or a new one, below `folder`, with the configuration `path`."""

    def __init__(self, path: Path, folder: Path, like: Run | None = None) -> None:
        self.path, self.folder, self.output = path, folder, folder / "out"
        self.started: list[str] = []
        if like is not None:
            shutil.copytree(like.output, self.output, copy_function=shutil.copy2)

    def config(self, *overrides: str) -> RunConfig:
        return load_run(self.path, self._all(overrides))

    def run(self, *overrides: str) -> str:
        """`alia-ctx run`: the message of the error that ended it, or nothing. `started`
        holds the commands that it started.
        """
        from alia_ctx.cli.run_commands import app
        from alia_ctx.workflow import pipeline

        def in_this_process(ranks: int, arguments: Sequence[str]) -> None:
            command, _, *rest = arguments
            self.started.append(" ".join([command, *rest[: 2 * ("--stage" in rest)]]))
            app(list(arguments), standalone_mode=False)

        self.started = []
        real, pipeline.torchrun = pipeline.torchrun, in_this_process
        try:
            return message(
                lambda: workflow.run_all(
                    self.path, self._all(overrides), self.config(*overrides)
                )
            )
        finally:
            pipeline.torchrun = real

    def train(
        self, stage: str, *overrides: str, exit_before: float | None = None
    ) -> str:
        return message(
            lambda: workflow.train(
                self.config(*overrides), stage, exit_before=exit_before
            )
        )

    def files(self) -> dict[str, tuple[int, int]]:
        """(size, time of the last change in ns) of every file but the report's, which each
        run writes anew.
        """
        return {
            str(path.relative_to(self.output)): (
                path.stat().st_size,
                path.stat().st_mtime_ns,
            )
            for path in sorted(self.output.rglob("*"))
            if path.is_file() and path.parent.name != "report"
        }

    def _all(self, overrides: Sequence[str]) -> list[str]:
        return [*SMALL, f"output={self.output}", *overrides]


def message(action: Callable[[], Any]) -> str:
    """`ErrorName: text` of the mistake that ends `action`; nothing where it succeeds."""
    try:
        action()
    except AliaError as error:
        return f"{type(error).__name__}: {error}"
    return ""
