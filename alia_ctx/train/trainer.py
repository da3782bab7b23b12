"""The stage trainer: updates, ledger, checkpoints and metrics of one stage. Knows neither
Megatron nor HF.

The engine computes; the plan says which rows an update holds; this module decides what
happens when, and leaves a trail (`metrics.jsonl`, checkpoints with manifests) from
which a stage can be resumed or audited.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest, StageLedger
from alia_ctx.config.run import RANDOM, RunConfig, position_edges
from alia_ctx.data.packing import PackedRow, PackPlan
from alia_ctx.errors import AliaError, CheckpointError
from alia_ctx.train.balance import assign_rows, imbalance
from alia_ctx.train.checkpoint_manager import CheckpointKeeper
from alia_ctx.train.engine import Engine, UpdateResult
from alia_ctx.train.metrics import GroupedLoss, JsonLines, SpikeDetector, flatten
from alia_ctx.train.run_directory import (
    checkpoints_directory,
    finished_checkpoint,
    stage_directory,
)
from alia_ctx.train.sinks import open_sinks
from alia_ctx.train.stopping import RequeueError, StopRequests, Watchdog

PATIENCE = 3  # updates in a row without a finite gradient before a run stops


class DivergedError(AliaError):
    """Too many updates in a row had no finite loss or gradient.

    The last good checkpoint is intact.
    """

    exit_code = 3


class StageTrainer:
    """Trains one stage from where it stands to its end.

    Args:
        run, stage: the configuration and the name of the stage in it.
        engine: built for that stage's model, RoPE, context and layout.
        plan: the stage's packed rows; update k is rows [k*R, (k+1)*R) of it, whatever the layout.
        report: called on rank 0 after each update with the line that goes to `metrics.jsonl`.
        notice: called on rank 0 with what a person should know: a damaged checkpoint, a
            skipped update, a spike.
        evaluate: called on every rank after updates at which an evaluation is due; its
            result goes to the log.
        stop: asked after each update why to stop, if at all.
        watchdog: told of every sign of life.
    """

    def __init__(
        self,
        run: RunConfig,
        stage: str,
        engine: Engine,
        plan: PackPlan,
        *,
        report: Callable[[dict[str, Any]], None] = lambda metrics: None,
        notice: Callable[[str], None] = lambda text: None,
        evaluate: Callable[[], dict[str, Any]] | None = None,
        stop: StopRequests | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.run, self.name, self.stage = run, stage, run.stage(stage)
        self.engine, self.plan = engine, plan
        self.report, self.notice, self.evaluate = report, notice, evaluate
        self.stop = stop or StopRequests()
        self.watchdog = watchdog
        self.directory = stage_directory(run, stage)
        self.keeper = CheckpointKeeper(
            engine,
            checkpoints_directory(run, stage),
            run.checkpoint,
            notice,
            self._beat,
        )
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
        self._longest_update = 0.0
        self._skipped_in_a_row = 0
        self._spikes = SpikeDetector()

    # -- the stage ---------------------------------------------------------------------

    def prepare(self) -> int:
        """Load the newest whole checkpoint of this stage, or what it starts from.

        Returns the next update.
        """
        newest = self.keeper.newest_whole()
        if newest is not None:
            self._resume(newest)
        elif self.stage.init_from != RANDOM:
            self._start_from(self._origin())
        return self.update

    def train(self) -> Path:
        """Run all updates that are left and return the stage's last checkpoint. Call
        `prepare` first.

        Raises RequeueError where it was asked to stop (everything is saved then),
        DivergedError after three updates in a row without a finite gradient,
        CheckpointError where the last checkpoint could not be written.
        """
        log = self.open_log()
        try:
            while self.update < self.stage.updates:
                self.advance(log)
            return self.keeper.save(self._manifest())
        finally:
            for writer in log:
                writer.close()

    def advance(self, log: Sequence[Any]) -> None:
        """One update with all that belongs to it:

        log line, evaluation, checkpoint, reasons to stop.
        """
        line = self._one_update()
        self._log(log, line)
        self._check_diverged(line)
        reason = self._agreed_stop()
        if reason and self.update < self.stage.updates:
            self.keeper.save(self._manifest())
            raise RequeueError(
                f"stopped by {reason} after update {self.update}; saved, start again to go on"
            )
        if (
            self.update % self.run.checkpoint.every_updates == 0
            or self.update == self.stage.updates
        ):
            self.keeper.begin(self._manifest())

    def _one_update(self) -> dict[str, Any]:
        started = time.perf_counter()
        first = self.update * self.stage.rows_per_update
        numbers = range(first, first + self.stage.rows_per_update)
        rows = [self.plan.row(i) for i in numbers]
        work = self._work(numbers)
        shares = assign_rows(work, self.engine.data_parallel_size, self.stage.layout.pp)
        read = time.perf_counter()
        mine = [rows[i] for i in shares[self.engine.data_parallel_rank]]
        result = self.engine.train_update(mine, self.stage.learning_rate)
        self._beat()
        self.update += 1
        self._count(rows, result)
        line = self._metrics(rows, work, shares, result)
        seconds = time.perf_counter() - started
        self._longest_update = max(self._longest_update, seconds)
        return {
            **line,
            **self._times(
                seconds, read - started, result, line["update_tokens"], sum(work)
            ),
        }

    def _count(self, rows: Sequence[PackedRow], result: UpdateResult) -> None:
        # One that predicts nothing is skipped too, and no sign of divergence.
        is_sound = result.applied or not result.predicted_tokens
        self._skipped_in_a_row = 0 if is_sound else self._skipped_in_a_row + 1
        self.ledger = dataclasses.replace(
            self.ledger,
            updates=self.ledger.updates + 1,
            skipped_updates=self.ledger.skipped_updates + (not result.applied),
            rows=self.ledger.rows + len(rows),
            tokens=self.ledger.tokens + sum(row.real_tokens for row in rows),
            predicted_tokens=self.ledger.predicted_tokens
            + sum(row.predicted for row in rows),
        )

    def _work(self, rows: range) -> list[float]:
        """FLOPs of each row, which balancing makes even over the data-parallel ranks."""
        linear = self.run.model.linear_flops_per_token() * self.stage.context
        attention = self.run.model.attention_flops([1]) * self.plan.attention_pairs(
            slice(rows.start, rows.stop)
        )
        return list(linear + attention)

    # -- what is logged ----------------------------------------------------------------

    def _metrics(
        self,
        rows: Sequence[PackedRow],
        work: Sequence[float],
        shares: Sequence[Sequence[int]],
        result: UpdateResult,
    ) -> dict[str, Any]:
        grouped = GroupedLoss(position_edges(self.run), list(self.run.data.sources))
        for part in result.losses:
            grouped.add(part.row.doc_offsets, part.row.sources, part.as_row())
        totals = self.engine.sum_over_ranks(grouped.values)
        return {
            "stage": self.name,
            "update": self.update,
            "loss": result.loss,
            "gradient_norm": result.gradient_norm,
            "learning_rate": self.stage.learning_rate,
            "applied": result.applied,
            "spike": self._spikes.is_spike(result.loss),
            "rows": [rows[0].index, rows[-1].index + 1],
            "tokens": self.ledger.tokens,
            "update_tokens": sum(row.real_tokens for row in rows),
            "predicted_tokens": result.predicted_tokens,
            "imbalance": imbalance(work, shares),
            "memory_gib": self.engine.memory_bytes() / 2**30,
            **grouped.means(totals),
        }

    def _times(
        self,
        seconds: float,
        data_seconds: float,
        result: UpdateResult,
        tokens: int,
        flops: float,
    ) -> dict[str, Any]:
        """Speed and where the time went.

        `save_seconds` is what saving kept this update's loop from training.
        """
        ranks = self.engine.world_size
        peak = self.run.cluster.peak_tflops * 1e12 * ranks
        return {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_rank": tokens / seconds / ranks,
            "mfu": flops / seconds / peak,
            "mfu_6n": 6.0 * self.run.model.parameters() * tokens / seconds / peak,
            "data_seconds": data_seconds,
            "compute_seconds": result.compute_seconds,
            "communication_seconds": result.communication_seconds,
            "step_seconds": result.step_seconds,
            "save_seconds": self.keeper.take_seconds(),
        }

    def open_log(self) -> list[Any]:
        """Writers of `advance`:

        on rank 0 the JSON lines first, then the sinks; nothing elsewhere.
        """
        if self.engine.rank:
            return []
        lines = JsonLines(self.directory / "metrics.jsonl", self.update)
        for line in lines.kept:
            self._spikes.is_spike(math.nan if line["loss"] is None else line["loss"])
        names, settings = self.run.metrics.sinks, self.run.to_dict()
        return [
            lines,
            *open_sinks(
                names, self.directory, self.run.name, self.name, settings, self.notice
            ),
        ]

    def _log(self, log: Sequence[Any], line: dict[str, Any]) -> None:
        if self._evaluation_is_due() and self.evaluate is not None:
            line = {**line, "held_out": self.evaluate()}
            self._beat()
        if not log:
            return
        log[0].append(line)
        for sink in log[1:]:
            sink.write(self.update, flatten(line))
        self.report(line)
        if not line["applied"]:
            self.notice(
                f"update {self.update}: loss {line['loss']}, gradient norm "
                f"{line['gradient_norm']}; skipped"
            )
        if line["spike"]:
            self.notice(
                f"update {self.update}: loss {line['loss']:.4f} is a spike; rows {line['rows']}"
            )

    def _evaluation_is_due(self) -> bool:
        every = self.run.evaluation.every_updates
        return bool(every) and (
            self.update % every == 0 or self.update == self.stage.updates
        )

    def _check_diverged(self, line: dict[str, Any]) -> None:
        if self._skipped_in_a_row < PATIENCE:
            return
        first, last = line["rows"]
        documents = [
            f"row {i}: "
            + ", ".join(
                f"{self.plan.sources[s]}/{d}"
                for s, d in zip(row.sources[:8], row.doc_ids[:8], strict=True)
            )
            + (f" and {len(row.doc_ids) - 8} more" if len(row.doc_ids) > 8 else "")
            for i, row in ((i, self.plan.row(i)) for i in range(first, last))
        ]
        newest = checkpoint.latest(self.keeper.root)
        raise DivergedError(
            f"stage {self.name}: {PATIENCE} updates in a row, the last being "
            f"{self.update}, had no finite loss or "
            f"gradient (loss {line['loss']}, gradient norm {line['gradient_norm']}); "
            "nothing was changed by them.\n"
            f"Last good checkpoint: {newest or 'none yet'}. Documents of the last "
            "update (source/number):\n  " + "\n  ".join(documents)
        )

    # -- stopping ----------------------------------------------------------------------

    def _agreed_stop(self) -> str | None:
        """Why to stop, if any rank has a reason;

        also where finished background saves are committed.
        """
        reason = self.stop.reason(
            still_to_come=2 * self._longest_update + self.keeper.longest_seconds
        )
        waiting = self.keeper.is_writing
        stops, writers = self.engine.sum_over_ranks(
            np.array([reason is not None, waiting], dtype=np.float64)
        )
        if not writers:
            self.keeper.finish()
        return (reason or "another rank's signal") if stops else None

    def _beat(self) -> None:
        if self.watchdog is not None:
            self.watchdog.beat()

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
            extra={"precision": self.engine.precision_on_disk},
        )

    # -- loading -----------------------------------------------------------------------

    def _resume(self, path: Path) -> None:
        manifest = checkpoint.read_manifest(path)
        self._same_model(path, manifest)
        self._same_stage(path, manifest)
        self.engine.load(path / checkpoint.STATE, with_optimizer=True)
        self.keeper.assets = path / checkpoint.ASSETS
        self.history, self.ledger = manifest.ledger[:-1], manifest.ledger[-1]
        self.update, self.parent = manifest.update, manifest.parent

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
                f"{path} holds no optimizer state; set "
                f"stages.{self.name}.optimizer_state=reset, or start from a stage"
            )
        error = self.keeper.damage(path)
        if error is not None:
            raise CheckpointError(error)
        self.engine.load(path / checkpoint.STATE, with_optimizer=keep)
        self.keeper.assets = path / checkpoint.ASSETS
        self.history, self.parent = manifest.ledger, str(path)

    def _same_model(self, path: Path, manifest: Manifest) -> None:
        if manifest.model != self.run.model:
            differing = [
                f"{name}: {getattr(manifest.model, name)} there, {value} in the configuration"
                for name, value in dataclasses.asdict(self.run.model).items()
                if getattr(manifest.model, name) != value
            ]
            raise CheckpointError(
                f"{path} is of another model ({'; '.join(differing)})"
            )

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
                f"{path} was trained with other settings ({'; '.join(differing)}); "
                "restore them to resume, "
                f"or remove {self.keeper.root} to begin the stage anew"
            )
