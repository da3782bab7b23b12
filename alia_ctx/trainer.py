"""The stage trainer: updates, ledger, checkpoints and metrics of one stage. Knows neither Megatron nor HF.

The engine computes; the plan says which rows an update holds; this module decides what happens when, and
leaves a trail (`metrics.jsonl`, checkpoints with manifests) from which a stage can be resumed or audited.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alia_ctx import checkpoint
from alia_ctx.balance import assign_rows
from alia_ctx.checkpoint import Manifest, StageLedger
from alia_ctx.config import RANDOM, RunConfig, StageConfig
from alia_ctx.errors import CheckpointError
from alia_ctx.packing import PackedRow, PackPlan


@dataclass(frozen=True)
class RowLosses:
    """Losses of one row on one rank: `values` fp32 [t] and `predicted` bool [t] over the row's `ranges`, in order."""

    row: PackedRow
    ranges: tuple[tuple[int, int], ...]
    values: np.ndarray
    predicted: np.ndarray

    def as_row(self) -> np.ndarray:
        """fp32 [T]: losses in row order, NaN where nothing is predicted or another rank holds the token."""
        out = np.full(self.row.length, np.nan, dtype=np.float32)
        start = 0
        for a, b in self.ranges:
            part = slice(start, start + b - a)
            out[a:b] = np.where(self.predicted[part], self.values[part], np.nan)
            start += b - a
        return out


@dataclass(frozen=True)
class UpdateResult:
    """What one update did. `loss` is the mean over the predicted tokens of all ranks, `losses` this rank's own."""

    loss: float
    predicted_tokens: int
    gradient_norm: float
    applied: bool
    losses: tuple[RowLosses, ...]
    compute_seconds: float
    step_seconds: float


class Engine(Protocol):
    """What the trainer needs of a compute engine. Every method but the properties is collective."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def data_parallel_rank(self) -> int: ...

    @property
    def data_parallel_size(self) -> int: ...

    def train_update(self, rows: Sequence[PackedRow], learning_rate: float) -> UpdateResult: ...

    def row_losses(self, rows: Sequence[PackedRow]) -> tuple[RowLosses, ...]: ...

    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray: ...

    def gather_objects(self, value: Any) -> list[Any]: ...

    def barrier(self) -> None: ...

    def save(self, directory: Path, *, with_optimizer: bool = True) -> None: ...

    def load(self, directory: Path, *, with_optimizer: bool) -> None: ...


def stage_directory(run: RunConfig, stage: str) -> Path:
    return run.directory("stages", stage)


def checkpoints_directory(run: RunConfig, stage: str) -> Path:
    return stage_directory(run, stage) / "checkpoints"


def finished_checkpoint(run: RunConfig, stage: str) -> Path:
    """The last checkpoint of a finished stage; CheckpointError says how far it got where it is not finished."""
    wanted = run.stage(stage).updates
    found = checkpoint.latest(checkpoints_directory(run, stage))
    if found is None:
        raise CheckpointError(f"stage {stage} has no checkpoint yet; run `alia-ctx train CONFIG --stage {stage}`")
    update = checkpoint.read_manifest(found).update
    if update < wanted:
        raise CheckpointError(
            f"stage {stage} has done {update} of {wanted} updates; go on with `alia-ctx train CONFIG --stage {stage}`"
        )
    return found


class StageTrainer:
    """Trains one stage from where it stands to its end.

    Args:
        run, stage: the configuration and the name of the stage in it.
        engine: built for that stage's model, RoPE, context and layout.
        plan: the stage's packed rows; update k is rows [k*R, (k+1)*R) of it, whatever the layout.
        report: called on rank 0 after each update with the line that goes to `metrics.jsonl`.
    """

    def __init__(
        self,
        run: RunConfig,
        stage: str,
        engine: Engine,
        plan: PackPlan,
        *,
        report: Callable[[dict[str, Any]], None] = lambda metrics: None,
    ) -> None:
        self.run, self.name, self.stage = run, stage, run.stage(stage)
        self.engine, self.plan, self.report = engine, plan, report
        self.directory = stage_directory(run, stage)
        self.checkpoints = checkpoints_directory(run, stage)
        self.history: tuple[StageLedger, ...] = ()
        self.ledger = StageLedger(
            stage=stage,
            context=self.stage.context,
            rope=self.stage.rope,
            learning_rate=self.stage.learning_rate,
            plan=plan.fingerprint,
        )
        self.parent: str | None = None
        self.update = 0

    def prepare(self) -> int:
        """Load the newest checkpoint of this stage, or what it starts from. Returns the next update."""
        newest = checkpoint.latest(self.checkpoints)
        if newest is not None:
            self._resume(newest)
        elif self.stage.init_from != RANDOM:
            self._start_from(self._origin())
        if self.engine.rank == 0:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            _keep_metrics_before(self.directory / "metrics.jsonl", self.update)
        self.engine.barrier()
        return self.update

    def train(self) -> Path:
        """Run all updates that are left. Returns the stage's last checkpoint."""
        start = self.prepare()
        for update in range(start, self.stage.updates):
            metrics = self._one_update(update)
            if self.engine.rank == 0:
                _append_line(self.directory / "metrics.jsonl", metrics)
                self.report(metrics)
            if self._save_is_due():
                self.save()
        return checkpoint.latest(self.checkpoints) or self.save()

    def save(self) -> Path:
        """Write a checkpoint of the state after `self.update` updates; atomic, kept by the retention rules."""
        final = self.checkpoints / checkpoint.checkpoint_name(self.update)
        temporary = checkpoint.temporary_path(final)
        if self.engine.rank == 0:
            checkpoint.begin(final)
        self.engine.barrier()
        self.engine.save(temporary / checkpoint.STATE)
        self.engine.barrier()
        if self.engine.rank == 0:
            checkpoint.commit(temporary, final, self._manifest(), overwrite=True)
            rules = self.run.checkpoint
            checkpoint.retain(self.checkpoints, keep_last=rules.keep_last, keep_every=rules.keep_every)
        self.engine.barrier()
        return final

    def _one_update(self, update: int) -> dict[str, Any]:
        started = time.perf_counter()
        first = update * self.stage.rows_per_update
        numbers = range(first, first + self.stage.rows_per_update)
        rows = [self.plan.row(i) for i in numbers]
        work = self._work(numbers)
        share = assign_rows(work, self.engine.data_parallel_size, self.stage.layout.pp)[self.engine.data_parallel_rank]
        data_seconds = time.perf_counter() - started
        result = self.engine.train_update([rows[i] for i in share], self.stage.learning_rate)
        self.update = update + 1
        self.ledger = dataclasses.replace(
            self.ledger,
            updates=self.ledger.updates + 1,
            skipped_updates=self.ledger.skipped_updates + (not result.applied),
            rows=self.ledger.rows + len(rows),
            tokens=self.ledger.tokens + sum(row.real_tokens for row in rows),
            predicted_tokens=self.ledger.predicted_tokens + result.predicted_tokens,
        )
        return self._metrics(result, rows, time.perf_counter() - started, data_seconds)

    def _work(self, rows: range) -> list[float]:
        """FLOPs of each row, which balancing makes even over the data-parallel ranks."""
        linear = self.run.model.linear_flops_per_token() * self.stage.context
        attention = self.run.model.attention_flops([1]) * self.plan.attention_pairs(slice(rows.start, rows.stop))
        return list(linear + attention)

    def _metrics(
        self, result: UpdateResult, rows: Sequence[PackedRow], seconds: float, data_seconds: float
    ) -> dict[str, Any]:
        tokens = sum(row.real_tokens for row in rows)
        return {
            "stage": self.name,
            "update": self.update,
            "loss": result.loss,
            "gradient_norm": result.gradient_norm,
            "learning_rate": self.stage.learning_rate,
            "applied": result.applied,
            "tokens": self.ledger.tokens,
            "predicted_tokens": result.predicted_tokens,
            "update_tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_rank": tokens / seconds / self.engine.world_size,
            "seconds": seconds,
            "data_seconds": data_seconds,
            "compute_seconds": result.compute_seconds,
            "step_seconds": result.step_seconds,
        }

    def _save_is_due(self) -> bool:
        return self.update == self.stage.updates or self.update % self.run.checkpoint.every_updates == 0

    def _manifest(self) -> Manifest:
        return Manifest(
            stage=self.name,
            update=self.update,
            model=self.run.model,
            rope=self.stage.rope,
            context=self.stage.context,
            ledger=(*self.history, self.ledger),
            has_optimizer=True,
            parent=self.parent,
            config=self.run.to_dict(),
        )

    def _origin(self) -> Path:
        if self.stage.init_from in self.run.stages:
            return finished_checkpoint(self.run, self.stage.init_from)
        return Path(self.stage.init_from)

    def _start_from(self, path: Path) -> None:
        manifest = checkpoint.read_manifest(path)
        self._same_model(path, manifest)
        keep = self.stage.optimizer_state == "keep"
        if keep and not manifest.has_optimizer:
            raise CheckpointError(
                f"{path} holds no optimizer state; set stages.{self.name}.optimizer_state=reset, or start from a stage"
            )
        self._verify(path, manifest)
        self.engine.load(path / checkpoint.STATE, with_optimizer=keep)
        self.history, self.parent = manifest.ledger, str(path)

    def _resume(self, path: Path) -> None:
        manifest = checkpoint.read_manifest(path)
        self._same_model(path, manifest)
        self._same_stage(path, manifest)
        self._verify(path, manifest)
        self.engine.load(path / checkpoint.STATE, with_optimizer=True)
        self.history, self.ledger = manifest.ledger[:-1], manifest.ledger[-1]
        self.update, self.parent = manifest.update, manifest.parent

    def _verify(self, path: Path, manifest: Manifest) -> None:
        """Checksums, each rank its share of the files; every rank learns of any rank's finding."""
        problem = None
        try:
            checkpoint.verify_files(path, manifest, part=self.engine.rank, parts=self.engine.world_size)
        except CheckpointError as error:
            problem = str(error)
        found = [text for text in self.engine.gather_objects(problem) if text]
        if found:
            raise CheckpointError("\n".join(found))

    def _same_model(self, path: Path, manifest: Manifest) -> None:
        if manifest.model != self.run.model:
            differing = [
                f"{name}: {getattr(manifest.model, name)} there, {value} in the configuration"
                for name, value in dataclasses.asdict(self.run.model).items()
                if getattr(manifest.model, name) != value
            ]
            raise CheckpointError(f"{path} is of another model ({'; '.join(differing)})")

    def _same_stage(self, path: Path, manifest: Manifest) -> None:
        """Within a stage, what the ledger has counted must stay what it was."""
        then, now = manifest.ledger[-1], self.ledger
        differing = [
            f"{name}: {getattr(then, name)} there, {getattr(now, name)} now"
            for name in ("stage", "context", "rope", "learning_rate", "plan")
            if getattr(then, name) != getattr(now, name)
        ]
        if differing:
            raise CheckpointError(
                f"{path} was trained with other settings ({'; '.join(differing)}); restore them to resume, "
                f"or remove {self.checkpoints} to begin the stage anew"
            )


def _append_line(path: Path, metrics: dict[str, Any]) -> None:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(clean) + "\n")


def _keep_metrics_before(path: Path, update: int) -> None:
    """Drop the lines of updates that a resumed run does again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["update"] <= update]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
