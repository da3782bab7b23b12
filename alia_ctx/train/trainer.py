"""The stage trainer: updates, ledger, checkpoints and metrics of one stage. Knows neither
Megatron nor Hugging Face.

The engine computes; the plan says which rows an update holds; this module decides what
happens when, and leaves a trail (`metrics.jsonl`, checkpoints with manifests) from
which a stage can be resumed or audited.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.checkpoint.trained_sources import (
    SOURCES,
    TrainedSource,
    recorded_sources,
)
from alia_ctx.data.documents.chat_spec import CHAT_TEMPLATE
from alia_ctx.data.packing import PackPlan, weigh_by_piece
from alia_ctx.data.tokens import CONFIGURED, TOKENIZER
from alia_ctx.errors import AliaError
from alia_ctx.train.balance import assign_rows, imbalance
from alia_ctx.train.best import BEST, judged
from alia_ctx.train.checkpoint_manager import CheckpointManager
from alia_ctx.train.engine import Engine
from alia_ctx.train.metrics import StageMetrics, documents_of
from alia_ctx.train.metrics_log import LogError, MetricsLog
from alia_ctx.train.pace import UNKNOWN_EVALUATION, Pace
from alia_ctx.train.rank_watch import RankWatch
from alia_ctx.train.run_directory import checkpoints_directory, metrics_file
from alia_ctx.train.schedule import stage_schedule
from alia_ctx.train.stage_identity import PLAN, PLANNED
from alia_ctx.train.stage_log import open_log, remarkable, written
from alia_ctx.train.stage_state import StageState, resume, start_from, with_schedule
from alia_ctx.train.stopping import RequeueError, StopRequests, Watchdog
from alia_ctx.train.task import StageTask

PATIENCE = 3  # updates in a row without a finite gradient before a run stops


class DivergedError(AliaError):
    """Too many updates in a row had no finite loss or gradient.

    The last good checkpoint is intact.
    """

    exit_code = 3


class StageTrainer:
    """Trains one stage from where it stands to its end.

    Args:
        task: the stage and its surroundings.
        engine: built for that stage's model, RoPE, context and layout.
        plan: the stage's packed rows (each a packed sequence).
        report: called on rank 0 after each update with the line that goes to the log.
        notice: called on rank 0 with what a person should know: a damaged checkpoint, a
            skipped update, a spike.
        evaluate: called on every rank after updates at which an evaluation is due; its
            result goes to the log, and its `metrics` say which checkpoint is best.
        stop: asked after each update why to stop, if at all.
        watchdog: told of every sign of life.
    """

    def __init__(
        self,
        task: StageTask,
        engine: Engine,
        plan: PackPlan,
        *,
        report: Callable[[dict[str, Any]], None] = lambda line: None,
        notice: Callable[[str], None] = lambda text: None,
        evaluate: Callable[[], dict[str, Any]] | None = None,
        stop: StopRequests | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.task, self.stage = task, task.stage
        self.engine, self.plan = engine, plan
        self.report, self.notice, self.evaluate = report, notice, evaluate
        self.stop = stop or StopRequests()
        self.watchdog = watchdog
        self.schedule = stage_schedule(task.stage, task.updates)
        self.metrics = StageMetrics(
            task.model,
            task.stage.context,
            task.position_edges,
            plan.sources,
            task.peak_flops,
        )
        self.checkpoints = CheckpointManager(
            engine,
            checkpoints_directory(task.directory),
            task.saving,
            notice,
            self._beat,
            watchdog.allow if watchdog is not None else lambda seconds: None,
        )
        self.state = StageState.at_start(task.name, task.stage, plan.fingerprint)
        self._watch = RankWatch(engine, task.directory, notice)
        self._pace, self._skipped_in_a_row = Pace(), 0
        self._told = {""}

    # -- the stage ---------------------------------------------------------------------

    def prepare(self) -> int:
        """Load the newest whole checkpoint of this stage, or what it starts from.

        Returns the next update. CheckpointError where something is in the way of the last.
        """
        newest = self.checkpoints.newest_whole()
        if checkpoint.update_of(newest) < self.task.updates:
            # Else it is found out when all is trained.
            self.checkpoints.require_free(self.task.updates)
        if newest is not None:
            self.state = resume(
                self.state, self.task, self.plan, self.checkpoints, newest
            )
        else:
            self.state = start_from(self.state, self.task, self.checkpoints)
        notice = self.notice if self.engine.rank == 0 else lambda text: None
        self.state = with_schedule(self.state, self.schedule, notice)
        return self.update

    @property
    def update(self) -> int:
        """Updates done."""
        return self.state.update

    def train(self) -> Path:
        """Run all updates that are left and return the stage's last checkpoint. Call
        `prepare` first.

        Raises RequeueError where it was asked to stop (everything is saved then),
        DivergedError after three updates in a row without a finite gradient,
        CheckpointError where the last checkpoint could not be written.
        """
        with self.open_log() as log:
            while self.update < self.task.updates:
                self.advance(log)
            return self.checkpoints.save(self._manifest())

    def open_log(self) -> MetricsLog:
        """The log of `advance`: it writes on rank 0 and nowhere else. Collective."""
        log = open_log(self.task, self.engine, self.update, self.notice)
        self.metrics.remember(log.past_losses)
        past = self._pace.past_evaluation = log.last_number("evaluate_seconds")
        if self.stop.is_limited and self.evaluate and not past and not self.engine.rank:
            self.notice(UNKNOWN_EVALUATION)
        return log

    def advance(self, log: MetricsLog) -> None:
        """One update, from its rows to its line in the log, and what follows from it."""
        started = time.perf_counter()

        # Its rows, and which of them this rank computes.
        numbers = self.plan.rows_of_update(self.update)
        rows = [self.plan.row(i) for i in numbers]
        if self.stage.loss_weighting == "conversation":
            rows = weigh_by_piece(rows)
        at = slice(numbers.start, numbers.stop)
        flops = self.metrics.flops(self.plan.attention_pairs(at), self.plan.places(at))
        shares = assign_rows(
            flops, self.engine.data_parallel_size, self.stage.layout.pp
        )
        share = [rows[i] for i in shares[self.engine.data_parallel_rank]]
        data_seconds = time.perf_counter() - started

        # Forward, backward, and the optimizer's step.
        rate = self.schedule.rate(self.update)
        result = self.engine.train_update(share, rate)
        self._beat()
        self.state = self.state.counted(rows, applied=result.applied)

        # Its line in the log: what it did, how fast, and where the time went.
        results = self.metrics.results(self.engine, result)
        tokens = sum(row.real_tokens for row in rows)
        useful = self.metrics.useful_flops(rows)
        seconds = time.perf_counter() - started
        self._pace.updated(seconds)
        line = {
            "stage": self.task.name,
            "update": self.update,
            **results,
            "learning_rate": rate,
            "rows": [numbers.start, numbers.stop],
            "tokens": self.state.ledger.tokens,
            "update_tokens": tokens,
            "documents": sum(row.doc_ids.size for row in rows),
            "imbalance": imbalance(flops, shares),
            **self.metrics.speed(seconds, tokens, useful, self.engine.world_size),
            "data_seconds": data_seconds,
            "compute_seconds": result.compute_seconds,
            "communication_seconds": result.communication_seconds,
            "step_seconds": result.step_seconds,
            "save_seconds": self.checkpoints.take_seconds(),
        }
        line |= self._watch.look(self.update, result, data_seconds, flops, shares)
        is_best, due = False, self._is_due(self.task.evaluate_every)
        if self.evaluate is not None and due:
            began = time.perf_counter()
            line |= self.evaluate()
            self._beat()
            self._pace.evaluated(time.perf_counter() - began)
            is_best = self._note_best(line)
        unwritten = written(log, line)
        if self.engine.rank == 0:
            self.report(line)
            for text in remarkable(line):
                self.notice(text)

        # What follows: give up, make way, or save and go on.
        # One that predicts nothing is skipped too, and no sign of divergence.
        is_sound = result.applied or not result.predicted_tokens
        self._skipped_in_a_row = 0 if is_sound else self._skipped_in_a_row + 1
        if self._skipped_in_a_row == PATIENCE:
            documents = documents_of(rows, self.plan.sources)
            raise _diverged(line, self.checkpoints.root, documents, self._watch)
        reason = self._agreed_stop(unwritten)
        if reason and self.update < self.task.updates:
            self.checkpoints.save(self._manifest())
            stopped = RequeueError(
                f"stopped by {reason} after update {self.update}; "
                "saved, start again to go on"
            )
            stopped.on_all_ranks = True
            raise stopped
        if is_best or self._is_due(self.task.saving.every_updates):
            self.checkpoints.begin(self._manifest())

    def _note_best(self, line: Mapping[str, Any]) -> bool:
        """Whether the update just evaluated is the best of those that are whole so far; then
        it is saved and kept.
        """
        if self.task.best is None:
            return False
        before = self.checkpoints.whole_best()
        best, remark = judged(self.task.best, before, self.update, line)
        if remark not in self._told:
            self._told.add(remark)
            self.notice(remark)
        if best is None:
            return False
        extra = {**self.state.extra, BEST: best}
        self.state = dataclasses.replace(self.state, extra=extra)
        return True

    def _is_due(self, every: int, ahead: int = 0) -> bool:
        """Whether what happens each `every` updates (0: never), and at the end, does now, or
        so many updates later.
        """
        update = self.update + ahead
        return every > 0 and (update == self.task.updates or update % every == 0)

    def _agreed_stop(self, unwritten: OSError | None) -> str | None:
        """Why to stop, if any rank has a reason. LogError, after a save, where the line of
        the update could not be written.

        Also where finished background saves are committed: all is asked of all ranks at
        once.
        """
        is_evaluated = self._is_due(self.task.evaluate_every, ahead=1)
        another = self._pace.another(is_evaluated=is_evaluated)
        reason = self.stop.reason(another + self.checkpoints.longest_seconds)
        flags = (reason is not None, self.checkpoints.is_writing, unwritten is not None)
        asked = np.array(flags, dtype=float)
        stops, writers, failures = self.engine.sum_over_ranks(asked)
        if not writers:
            self.checkpoints.finish()
        if failures:
            self.checkpoints.save(self._manifest())
            raise LogError(
                f"{metrics_file(self.task.directory)}: the line of update {self.update} "
                f"cannot be written ({unwritten or 'on rank 0'}); the update is saved. "
                "See to the file system, and start again to go on"
            )
        return (reason or "another rank's signal") if stops else None

    def _beat(self) -> None:
        if self.watchdog is not None:
            self.watchdog.beat()

    def _manifest(self) -> Manifest:
        manifest = self.state.manifest(self.task.model, self.task.config)
        extra = {
            **_with_consumed(manifest.extra, self.plan, self.task, self.state),
            "precision": self.engine.precision_on_disk,
            PLAN: self.plan.statement.as_trained(),
        }
        if self.task.tokenizer is not None:
            extra[TOKENIZER] = self.task.tokenizer
        elif TOKENIZER not in extra and (configured := self.task.configured()):
            extra[CONFIGURED] = configured
        if self.task.chat_template is not None:
            extra[CHAT_TEMPLATE] = self.task.chat_template
        if self.plan.of_conversations:
            extra[PLANNED] = {"updates": self.task.updates, "epochs": self.stage.epochs}
        return dataclasses.replace(manifest, extra=extra)


def _with_consumed(
    extra: Mapping[str, Any], plan: PackPlan, task: StageTask, state: StageState
) -> dict[str, Any]:
    """The facts of a manifest, in which what the stage has consumed of each source stands
    behind what earlier stages did.
    """
    consumed = (TrainedSource(*counts) for counts in plan.consumed(state.ledger.rows))
    stage = tuple(source.with_terms(task.config) for source in consumed)
    return {**extra, SOURCES: [*extra.get(SOURCES, ()), *recorded_sources([stage])]}


def _diverged(
    line: Mapping[str, Any],
    checkpoints: Path,
    documents: Sequence[str],
    watch: RankWatch,
) -> DivergedError:
    newest = checkpoint.latest(checkpoints)
    listed = "\n  ".join(documents)
    return DivergedError(
        f"stage {line['stage']}: {PATIENCE} updates in a row, the last being "
        f"{line['update']}, had no finite loss or gradient (loss {line['loss']}, "
        f"gradient norm {line['gradient_norm']}); nothing was changed by them."
        f"{watch.suspicion(PATIENCE)}\n"
        f"Last good checkpoint: {newest or 'none yet'}. Documents of the last "
        f"update (source/number):\n  {listed}"
    )
