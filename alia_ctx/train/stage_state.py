"""Where a stage stands: what it has consumed, what it came from, and how that is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError, Manifest, StageLedger
from alia_ctx.checkpoint.trained_sources import (
    SOURCES,
    recorded_sources,
    trained_sources,
)
from alia_ctx.config.run import StageConfig
from alia_ctx.data.documents.chat_spec import CHAT_TEMPLATE
from alia_ctx.data.packing import PackedRow, PackPlan
from alia_ctx.errors import CheckpointError
from alia_ctx.identity import differences
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.agreement import on_all_ranks
from alia_ctx.train.checkpoint_manager import CheckpointManager
from alia_ctx.train.origin import require_same_model, require_same_tokenizer
from alia_ctx.train.run_directory import mended_by_training
from alia_ctx.train.schedule import Schedule
from alia_ctx.train.stage_identity import (
    CHANGES,
    SCHEDULE,
    STARTED_FROM,
    checkpoint_statement,
    require_same_plan,
    require_same_rows,
    require_same_stage,
)
from alia_ctx.train.task import StageTask

# Settings of the engine that show in the losses of a stage that goes on with others, and
# what an older release computed with, which did not have them.
_COMPUTATION = {
    **{"precision": None, "layers": "local"},
    **{"fp8": "off", "fp8_bf16_layers": 1},
}


@dataclass(frozen=True)
class StageState:
    """What a checkpoint of the stage says beside weights and optimizer.

    `history` holds the ledgers of the stages before, the oldest first; `parent` is the
    checkpoint that the stage started from, None for random weights. `extra` says what
    that was, what the stages before were trained on, and what changed while this one
    trained.
    """

    ledger: StageLedger
    history: tuple[StageLedger, ...] = ()
    parent: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def at_start(cls, name: str, stage: StageConfig, plan: str) -> StageState:
        """Of a stage that has consumed nothing of the plan with this fingerprint."""
        return cls(
            StageLedger(
                stage=name,
                context=stage.context,
                rope=stage.rope,
                learning_rate=stage.learning_rate,
                plan=plan,
            )
        )

    @property
    def update(self) -> int:
        """Updates done."""
        return self.ledger.updates

    def counted(self, rows: Sequence[PackedRow], *, applied: bool) -> StageState:
        """After one more update of `rows`."""
        then = self.ledger
        ledger = dataclasses.replace(
            then,
            updates=then.updates + 1,
            skipped_updates=then.skipped_updates + (not applied),
            rows=then.rows + len(rows),
            tokens=then.tokens + sum(row.real_tokens for row in rows),
            predicted_tokens=then.predicted_tokens + sum(row.predicted for row in rows),
        )
        return dataclasses.replace(self, ledger=ledger)

    def manifest(self, model: ModelSpec, config: Mapping[str, Any]) -> Manifest:
        return Manifest(
            stage=self.ledger.stage,
            update=self.update,
            model=model,
            rope=self.ledger.rope,
            context=self.ledger.context,
            ledger=(*self.history, self.ledger),
            has_optimizer=True,
            parent=self.parent,
            config=config,
            extra=self.extra,
        )


def resume(
    start: StageState,
    task: StageTask,
    plan: PackPlan,
    checkpoints: CheckpointManager,
    path: Path,
) -> StageState:
    """Load a checkpoint of the stage whose beginning is `start`. Collective.

    IdentityError where it is of another stage than the configuration's, or the plan
    does not go on where its ledger ends.
    """

    def compare() -> tuple[Manifest, list[str]]:
        manifest = checkpoint.read_manifest(path)
        changed = require_same_stage(task, path, manifest)
        require_same_plan(task, plan, manifest)
        require_same_rows(task, plan, manifest)
        if manifest.update < task.updates:
            changed += _other_computation(task, manifest)
        return manifest, changed

    manifest, changed = on_all_ranks(
        checkpoints.engine, str(path), compare, lambda compared: compared[1]
    )
    checkpoints.engine.load(path / checkpoint.STATE, with_optimizer=True)
    ledger = dataclasses.replace(manifest.ledger[-1], plan=plan.fingerprint)
    before = trained_sources(manifest)[:-1]
    extra = {**manifest.extra, SOURCES: recorded_sources(before)}
    if changed:
        change = {"after_update": manifest.update, "settings": changed}
        extra[CHANGES] = [*extra.get(CHANGES, ()), change]
        if checkpoints.engine.rank == 0:
            settings = "; ".join(changed)
            checkpoints.notice(f"from update {manifest.update + 1} on: {settings}")
    return StageState(ledger, manifest.ledger[:-1], manifest.parent, extra)


def _other_computation(task: StageTask, manifest: Manifest) -> list[str]:
    """A precision, FP8 or layers that changed while the stage trained: the ledger's updates
    are not all of the configuration's then. None of them changes what a checkpoint is or
    holds, so that a stage goes on with any.
    """
    then, now = (c.get("engine", {}) for c in (manifest.config, task.config))
    if "precision" not in then or "precision" not in now:
        return []
    old, new = (
        {name: engine.get(name, default) for name, default in _COMPUTATION.items()}
        for engine in (then, now)
    )
    if old["fp8"] == new["fp8"] == "off":
        old["fp8_bf16_layers"] = new["fp8_bf16_layers"]
    return differences(old, new, "engine")


def with_schedule(
    state: StageState, schedule: Schedule, notice: Callable[[str], None]
) -> StageState:
    """`state` with the schedule that it goes on with. Where that is another one than
    before, as a longer stage decays more slowly, the change is recorded and told: the
    rates of the updates that were done stay what they were.
    """
    then, now = state.extra.get(SCHEDULE), schedule.statement()
    extra = {**state.extra, SCHEDULE: now}
    changed = differences(then, now, SCHEDULE) if then is not None else []
    if changed:
        change = {"after_update": state.update, "settings": changed}
        extra[CHANGES] = [*extra.get(CHANGES, ()), change]
        notice(
            f"from update {state.update + 1} on, with rate "
            f"{schedule.rate(state.update):.6g}: {'; '.join(changed)}"
        )
    return dataclasses.replace(state, extra=extra)


def start_from(
    start: StageState, task: StageTask, checkpoints: CheckpointManager
) -> StageState:
    """Load what the stage starts from: nothing for random weights, another stage's
    checkpoint, or an imported one. Collective.

    CheckpointError where it is not there, of another model, damaged, or lacks the
    optimizer state that is to be kept; IdentityError where its tokenizer is another.
    """
    keep_optimizer = task.stage.optimizer_state == "keep"

    def look() -> tuple[Path, Manifest, str | None] | None:
        path = task.origin()
        if path is None:
            return None
        manifest = checkpoint.read_manifest(path)
        require_same_model(path, manifest, task.model)
        unknown = require_same_tokenizer(task, path, manifest)
        if keep_optimizer and not manifest.has_optimizer:
            raise CheckpointError(
                f"{path} holds no optimizer state; set "
                f"stages.{task.name}.optimizer_state=reset, or start from a stage"
            )
        return path, manifest, unknown

    found = on_all_ranks(
        checkpoints.engine,
        f"what stage {task.name} starts from, {task.stage.init_from}",
        look,
        lambda found: found and [str(found[0]), checkpoint_statement(found[1])],
    )
    if found is None:
        return start
    path, manifest, unknown = found
    if unknown is not None and checkpoints.engine.rank == 0:
        checkpoints.notice(unknown)
    problem = checkpoints.damage(path)
    if problem is not None:
        is_stage = task.stage.init_from in task.config.get("stages", ())
        with mended_by_training(task.stage.init_from) if is_stage else nullcontext():
            raise DamagedError(problem)
    checkpoints.engine.load(path / checkpoint.STATE, with_optimizer=keep_optimizer)
    extra = {
        STARTED_FROM: checkpoint_statement(manifest),
        SOURCES: recorded_sources(trained_sources(manifest)),
    }
    if CHAT_TEMPLATE in manifest.extra:  # text after conversations does not undo them
        extra[CHAT_TEMPLATE] = manifest.extra[CHAT_TEMPLATE]
    return StageState(start.ledger, manifest.ledger, str(path), extra)
