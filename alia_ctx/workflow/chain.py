"""The chain of a run's stages: what each starts from, how far each got, what comes before."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError
from alia_ctx.config.run import RANDOM, RunConfig, position_edges
from alia_ctx.data.packing import PackPlan, read_statement
from alia_ctx.data.tokens import tokenizer_statement
from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.train.best import BEST
from alia_ctx.train.origin import require_same_tokenizer
from alia_ctx.train.run_directory import RunDirectory, mended_by_training
from alia_ctx.train.stage_identity import (
    PLANNED,
    require_same_plan,
    require_same_stage,
)
from alia_ctx.train.task import StageTask


def run_directory(run: RunConfig) -> RunDirectory:
    return RunDirectory(Path(run.output))


def configured_tokenizer(run: RunConfig) -> dict[str, str] | None:
    """The configuration's tokenizer, file by file, as it is now; None where it is not at
    hand.
    """
    return tokenizer_statement(Path(run.tokenizer)) or None


def stage_task(run: RunConfig, name: str) -> StageTask:
    """What training has to know of `run` about the stage called `name`."""
    return StageTask(
        planned_updates=planned_updates(run, name),
        run=run.name,
        name=name,
        stage=run.stage(name),
        model=run.model,
        directory=run_directory(run).stage(name),
        origin=lambda: origin(run, name),
        position_edges=position_edges(run),
        peak_flops=run.cluster.peak_tflops * 1e12,
        saving=run.checkpoint,
        evaluate_every=run.evaluation.every_updates,
        best=run.evaluation.best,
        sinks=run.metrics.sinks,
        config=run.to_dict(),
        configured=lambda: configured_tokenizer(run),
    )


def planned_updates(run: RunConfig, name: str) -> int | None:
    """Updates of a stage of conversations, as its plan says, or its newest checkpoint
    where the plan is gone; None for other stages, which say themselves, and before the
    stage is packed.
    """
    stage = run.stage(name)
    if stage.update_instances is None:
        return None
    with suppress(DataError):
        statement = read_statement(run_directory(run).plan(name))
        if statement.identity.get("epochs") == stage.epochs:
            return statement.sizes["update_offsets"] - 1
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    if newest is not None:
        with suppress(CheckpointError):
            planned = checkpoint.read_manifest(newest).extra.get(PLANNED, {})
            if planned.get("epochs") == stage.epochs:
                return int(planned["updates"])
    return None


def check_trained(run: RunConfig, name: str, plan: PackPlan | None = None) -> bool:
    """Whether the stage is finished. IdentityError where it was begun or finished with
    other settings than those of `run`, or on another plan than `plan`, or would start
    from a model of another tokenizer: cheap, before any work starts.
    """
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    if newest is None:
        unknown_tokenizer(run, name)
        return False
    try:
        manifest = checkpoint.read_manifest(newest)
    except DamagedError:  # training passes it over, or says that none is whole
        return False
    task = stage_task(run, name)
    require_same_stage(task, newest, manifest)
    if plan is not None:
        require_same_plan(task, plan, manifest)
    return manifest.update >= task.updates


def unknown_tokenizer(run: RunConfig, name: str) -> str | None:
    """That the tokenizer of the checkpoint, given by its path, that a stage starts from
    cannot be compared with the run's, if so. Of stages of the run they say it themselves.

    IdentityError where it is another.
    """
    origin = run.stage(name).init_from
    if origin == RANDOM or origin in run.stages or run.deferred(origin):
        return None
    try:
        manifest = checkpoint.read_manifest(Path(origin))
    except CheckpointError:  # training, which needs it, says so
        return None
    return require_same_tokenizer(stage_task(run, name), Path(origin), manifest)


def finished_checkpoint(run: RunConfig, name: str, *, as_origin: bool = False) -> Path:
    """The last checkpoint of a finished stage: the door through which all that is made
    from a stage takes it.

    CheckpointError says how far it got where it is not finished; IdentityError what
    differs where it was trained with other settings than those of `run`.
    """
    task = stage_task(run, name)
    with mended_by_training(name):
        path = run_directory(run).finished_checkpoint(name, task.updates)
        manifest = checkpoint.read_manifest(path)
    require_same_stage(task, path, manifest, as_origin=as_origin)
    return path


@dataclass(frozen=True)
class BestCheckpoint:
    """The best checkpoint of a stage, by the metric that its manifests name."""

    path: Path
    update: int
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.path} (update {self.update}, {self.metric} {self.value:.6g})"


def best_checkpoint(run: RunConfig, name: str) -> BestCheckpoint | None:
    """The best checkpoint that a stage knows of and keeps; None where it knows none."""
    root = run_directory(run).checkpoints(name)
    newest = checkpoint.latest(root)
    best = None if newest is None else checkpoint.read_manifest(newest).extra.get(BEST)
    if best is None:
        return None
    path = root / checkpoint.checkpoint_name(best["update"])
    if not path.is_dir():
        return None
    return BestCheckpoint(path, best["update"], best["metric"], best["value"])


def origin(run: RunConfig, name: str) -> Path | None:
    """The checkpoint that a stage starts from; None where that is random weights.

    CheckpointError where it is another stage's that is not finished.
    """
    init_from = run.stage(name).init_from
    if init_from == RANDOM:
        return None
    if init_from in run.stages:
        return finished_checkpoint(run, init_from, as_origin=True)
    return Path(init_from)


def contexts_up_to(run: RunConfig, name: str) -> list[int]:
    """The stage's context and those of the stages it comes from, the shortest first."""
    contexts = {run.stage(name).context}
    while (name := run.stage(name).init_from) in run.stages:
        contexts.add(run.stage(name).context)
    return sorted(contexts)


def longest_context(run: RunConfig) -> int:
    return max(stage.context for stage in run.stages.values())
