"""The chain of a run's stages: what each starts from, how far each got, what comes before."""

from __future__ import annotations

from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.config.run import RANDOM, RunConfig
from alia_ctx.train.run_directory import RunDirectory


def run_directory(run: RunConfig) -> RunDirectory:
    return RunDirectory(Path(run.output))


def finished_checkpoint(run: RunConfig, name: str) -> Path:
    """The last checkpoint of a finished stage.

    CheckpointError says how far it got where it is not finished.
    """
    updates = run.stage(name).updates
    return run_directory(run).finished_checkpoint(name, updates)


def is_finished(run: RunConfig, name: str) -> bool:
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    return (
        newest is not None
        and checkpoint.read_manifest(newest).update >= run.stage(name).updates
    )


def origin(run: RunConfig, name: str) -> Path | None:
    """The checkpoint that a stage starts from; None where that is random weights.

    CheckpointError where it is another stage's that is not finished.
    """
    init_from = run.stage(name).init_from
    if init_from == RANDOM:
        return None
    if init_from in run.stages:
        return finished_checkpoint(run, init_from)
    return Path(init_from)


def contexts_up_to(run: RunConfig, name: str) -> list[int]:
    """The stage's context and those of the stages it comes from, the shortest first."""
    contexts = {run.stage(name).context}
    while (name := run.stage(name).init_from) in run.stages:
        contexts.add(run.stage(name).context)
    return sorted(contexts)


def longest_context(run: RunConfig) -> int:
    return max(stage.context for stage in run.stages.values())
