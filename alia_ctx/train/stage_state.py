"""Where a stage stands: what it has consumed, what it came from, and how that is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest, StageLedger
from alia_ctx.config.run import StageConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import CheckpointError
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.checkpoint_manager import CheckpointManager


@dataclass(frozen=True)
class StageState:
    """What a checkpoint of the stage says beside weights and optimizer.

    `history` holds the ledgers of the stages before, the oldest first; `parent` is the
    checkpoint that the stage started from, None for random weights.
    """

    ledger: StageLedger
    history: tuple[StageLedger, ...] = ()
    parent: str | None = None

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
        )


def resume(
    start: StageState, model: ModelSpec, checkpoints: CheckpointManager, path: Path
) -> StageState:
    """Load a checkpoint of the stage whose beginning is `start`. Collective.

    CheckpointError where it is of another model, or the ledger counted something else.
    """
    manifest = checkpoint.read_manifest(path)
    _same_model(path, manifest, model)
    then, now = manifest.ledger[-1], start.ledger
    differing = [
        f"{name}: {getattr(then, name)} there, {getattr(now, name)} now"
        for name in ("stage", "context", "rope", "learning_rate", "plan")
        if getattr(then, name) != getattr(now, name)
    ]
    if differing:
        raise CheckpointError(
            f"{path} was trained with other settings ({'; '.join(differing)}); "
            f"restore them to resume, or remove {path.parent} to begin the stage anew"
        )
    checkpoints.engine.load(path / checkpoint.STATE, with_optimizer=True)
    checkpoints.assets = path / checkpoint.ASSETS
    return StageState(then, manifest.ledger[:-1], manifest.parent)


def start_from(
    start: StageState,
    model: ModelSpec,
    checkpoints: CheckpointManager,
    path: Path,
    *,
    keep_optimizer: bool,
) -> StageState:
    """Load what the stage starts from: another stage's checkpoint, or an imported one.
    Collective.

    CheckpointError where it is of another model, damaged, or lacks the optimizer state
    that is to be kept.
    """
    manifest = checkpoint.read_manifest(path)
    _same_model(path, manifest, model)
    if keep_optimizer and not manifest.has_optimizer:
        raise CheckpointError(
            f"{path} holds no optimizer state; set "
            f"stages.{start.ledger.stage}.optimizer_state=reset, or start from a stage"
        )
    problem = checkpoints.damage(path)
    if problem is not None:
        raise CheckpointError(problem)
    checkpoints.engine.load(path / checkpoint.STATE, with_optimizer=keep_optimizer)
    checkpoints.assets = path / checkpoint.ASSETS
    return dataclasses.replace(start, history=manifest.ledger, parent=str(path))


def _same_model(path: Path, manifest: Manifest, model: ModelSpec) -> None:
    differing = [
        f"{name}: {getattr(manifest.model, name)} there, {value} in the configuration"
        for name, value in dataclasses.asdict(model).items()
        if getattr(manifest.model, name) != value
    ]
    if differing:
        raise CheckpointError(f"{path} is of another model ({'; '.join(differing)})")
