"""The chain of a run's stages: what each starts from, how far each got, what comes before."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError
from alia_ctx.config.run import RANDOM, RunConfig, position_edges
from alia_ctx.data.packing import PackPlan, read_statement, updates_of_epochs
from alia_ctx.data.tokens import tokenizer_statement
from alia_ctx.errors import CheckpointError, ConfigError, DataError, Problems
from alia_ctx.train.best import BEST
from alia_ctx.train.origin import require_same_tokenizer
from alia_ctx.train.run_directory import RunDirectory, mended_by_training
from alia_ctx.train.stage_identity import (
    PLANNED,
    STARTED_FROM,
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
        origin_checkpoints=run_directory(run).checkpoints(run.stage(name).init_from)
        if run.stage(name).init_from in run.stages
        else None,
        position_edges=position_edges(run),
        peak_flops=run.cluster.peak_flops(run.engine.precision),
        saving=run.checkpoint,
        evaluate_every=run.evaluation.every_updates,
        best=run.evaluation.best,
        sinks=run.metrics.sinks,
        config=run.to_dict(),
        configured=lambda: configured_tokenizer(run),
        later=lambda: begun_after(run, name),
    )


def orphaned(run: RunConfig, name: str) -> str | None:
    """That a stage is about to begin anew which later stages have come from already; None
    where it has checkpoints, or nothing came from it.
    """
    later = ", ".join(map(str, begun_after(run, name)))
    if not later or checkpoint.latest(run_directory(run).checkpoints(name)):
        return None
    return (
        f"stage {name} begins anew, and {later} came from the one that is gone: unless "
        "this one becomes the same, those are refused as made from something else"
    )


def begun_after(run: RunConfig, name: str) -> list[Path]:
    """Directories of the stages with checkpoints that follow from stage `name`, directly
    or not.
    """
    places, after = run_directory(run), [name]
    for later, stage in run.stages.items():
        if stage.init_from in after and checkpoint.latest(places.checkpoints(later)):
            after.append(later)
    return [places.stage(later) for later in after[1:]]


def planned_updates(run: RunConfig, name: str) -> int | None:
    """Updates of a stage of conversations, as its plan says, or its newest checkpoint
    where the plan is gone; None for other stages, which say themselves, and before the
    stage is packed.
    """
    stage = run.stage(name)
    if stage.update_instances is None:
        return None
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    with suppress(DataError):
        statement = read_statement(run_directory(run).plan(name))
        if (epochs := statement.identity.get("epochs")) == stage.epochs:
            return statement.sizes["update_offsets"] - 1
        # One that was made shorter ends within the plan that it was begun on.
        if newest is not None and stage.epochs and (epochs or 0) > stage.epochs:
            return updates_of_epochs(statement, stage.epochs)
    planned = _planned_by_checkpoint(newest)
    same = bool(planned) and planned["epochs"] == stage.epochs
    return int(planned["updates"]) if same else None


def check_trained(
    run: RunConfig, name: str, plan: PackPlan | None = None, *, reading: bool = False
) -> bool:
    """Whether the stage is finished. IdentityError where it was begun or finished with
    other settings than those of `run`, or on another plan than `plan`, or would start
    from a model of another tokenizer, ConfigError where it may not go on beneath a later
    stage: cheap, before any work starts.

    `reading`: a finished stage is only read, see `require_same_stage`.
    """
    require_free_to_go_on(run, name)
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    if newest is None:
        unknown_tokenizer(run, name)
        return False
    try:
        manifest = checkpoint.read_manifest(newest)
    except DamagedError as error:
        _require_within(run, name, newest, error)
        return False  # training passes it over, or says that none is whole
    task = stage_task(run, name)
    require_same_stage(task, newest, manifest, reading=reading)
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


def finished_checkpoint(run: RunConfig, name: str) -> Path:
    """The last checkpoint of a finished stage: the door through which all that is made
    from a stage takes it.

    CheckpointError says how far it got where it is not finished; IdentityError what
    differs where it was trained with other settings than those of `run`.
    """
    task = stage_task(run, name)
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    if newest is not None:
        try:
            checkpoint.read_manifest(newest)
        except DamagedError as error:
            _require_within(run, name, newest, error)
    with mended_by_training(name):
        path = run_directory(run).finished_checkpoint(name, task.updates)
        manifest = checkpoint.read_manifest(path)
    require_same_stage(task, path, manifest, reading=True)
    return path


def constants_notes(run: RunConfig) -> list[str]:
    """That finished stages had other constants of the optimizer than the configuration
    says now, a line each: they keep them.
    """
    notes = []
    for name in run.stages:
        with suppress(CheckpointError, DataError):
            task = stage_task(run, name)
            path = run_directory(run).finished_checkpoint(name, task.updates)
            manifest = checkpoint.read_manifest(path)
            changed = require_same_stage(task, path, manifest, reading=True)
            if changed:
                notes.append(
                    f"stage {name} is finished, and stays as it was trained: "
                    f"{'; '.join(changed)}"
                )
    return notes


def _require_within(
    run: RunConfig, name: str, newest: Path, error: DamagedError
) -> None:
    """DamagedError where the damaged `newest` bears the number of an update that the
    stage does not have: a copy under another name, or what is left of a longer stage.
    No training makes that one again.
    """
    try:
        updates = stage_task(run, name).updates
    except DataError:  # of conversations, whose plan is gone
        return
    if checkpoint.update_of(newest) > updates:
        raise DamagedError(
            f"{error}\nStage {name} ends at update {updates}, so that no training makes "
            f"this one again; move {newest} away"
        ) from error


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
        return finished_checkpoint(run, init_from)
    return Path(init_from)


def started_from(run: RunConfig, name: str) -> Path | None:
    """The checkpoint that the updates of a stage began with: the one that a begun stage
    has on record, whatever its origin became since. CheckpointError where it is gone.
    """
    init_from = run.stage(name).init_from
    recorded = recorded_origin(run, name)
    if recorded is None or init_from not in run.stages:
        return origin(run, name)
    update = checkpoint.checkpoint_name(recorded["update"])
    path = run_directory(run).checkpoints(init_from) / update
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: what stage {name} started from is not kept any more; restore it"
        )
    return path


def recorded_origin(run: RunConfig, name: str) -> dict[str, Any] | None:
    """What the checkpoints of a stage say that it started from; None where there are
    none, or they do not say it.
    """
    for path in reversed(
        checkpoint.list_checkpoints(run_directory(run).checkpoints(name))
    ):
        with suppress(CheckpointError):
            recorded: dict[str, Any] | None = checkpoint.read_manifest(path).extra.get(
                STARTED_FROM
            )
            return recorded
    return None


def require_free_to_go_on(run: RunConfig, name: str) -> None:
    """ConfigError where training a stage to its end would take it beyond the update that
    a later stage, which was begun, has started from: that one would then be of another
    chain than the configuration's, and both would train on the same data.
    """
    problems = Problems()
    for later, stage in run.stages.items():
        recorded = recorded_origin(run, later) if stage.init_from == name else None
        if recorded is None or recorded["stage"] != name:
            continue
        update = recorded["update"]
        if not _goes_on_beyond(run, name, update):
            continue
        of_tokens = run.stage(name).update_instances is None
        budget = "tokens" if of_tokens else "epochs"
        places = run_directory(run)
        problems.add(
            f"stages.{name}.{budget}",
            getattr(run.stage(name), budget),
            f"takes {name} beyond update {update}, which stage {later} has started "
            f"from: {later} would not be what the configuration says",
            f"restore it; or move {places.stage(later)} and {places.plan(later)} away, "
            f"so that {later} is made again from the longer stage; or let the longer "
            "stage have another `output`",
        )
    if problems:
        raise ConfigError(f"stage {name} cannot go on", problems)


def _goes_on_beyond(run: RunConfig, name: str, update: int) -> bool:
    newest = checkpoint.latest(run_directory(run).checkpoints(name))
    done = checkpoint.update_of(newest)
    try:
        updates = stage_task(run, name).updates
    except DataError:  # of conversations: the plan of more epochs is still to be made
        planned = _planned_by_checkpoint(newest)
        return int(planned.get("epochs", 0)) < (run.stage(name).epochs or 0)
    return updates > max(update, done)


def _planned_by_checkpoint(newest: Path | None) -> dict[str, Any]:
    with suppress(CheckpointError):
        if newest is not None:
            return dict(checkpoint.read_manifest(newest).extra.get(PLANNED, {}))
    return {}


def contexts_up_to(run: RunConfig, name: str) -> list[int]:
    """The stage's context and those of the stages it comes from, the shortest first."""
    contexts = {run.stage(name).context}
    while (name := run.stage(name).init_from) in run.stages:
        contexts.add(run.stage(name).context)
    return sorted(contexts)


def longest_context(run: RunConfig) -> int:
    return max(stage.context for stage in run.stages.values())
