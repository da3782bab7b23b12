"""Places of a run on disk."""

from __future__ import annotations

from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import CheckpointError


def stage_directory(run: RunConfig, stage: str) -> Path:
    return run.directory("stages", stage)


def checkpoints_directory(run: RunConfig, stage: str) -> Path:
    return stage_directory(run, stage) / "checkpoints"


def finished_checkpoint(run: RunConfig, stage: str) -> Path:
    """The last checkpoint of a finished stage;

    CheckpointError says how far it got where it is not finished.
    """
    wanted = run.stage(stage).updates
    found = checkpoint.latest(checkpoints_directory(run, stage))
    if found is None:
        raise CheckpointError(
            f"stage {stage} has no checkpoint yet; run `alia-ctx train CONFIG --stage {stage}`"
        )
    update = checkpoint.read_manifest(found).update
    if update < wanted:
        raise CheckpointError(
            f"stage {stage} has done {update} of {wanted} updates; go on with "
            f"`alia-ctx train CONFIG --stage {stage}`"
        )
    return found
