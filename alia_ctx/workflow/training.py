"""Train one stage on the ranks that this process is one of."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from alia_ctx import checkpoint
from alia_ctx.config.run import HELD_OUT, OptimizerConfig, RunConfig, StageConfig
from alia_ctx.data.packing import PackPlan
from alia_ctx.data.tokens import TokenStore
from alia_ctx.files import exclusive
from alia_ctx.identity import statement_checksum
from alia_ctx.progress import Meter, is_main, meter, say
from alia_ctx.spec.layout import Layout
from alia_ctx.train.agreement import on_all_ranks, on_first_rank
from alia_ctx.train.best import MEASURED_ON
from alia_ctx.train.engine import Engine
from alia_ctx.train.faults import RankName
from alia_ctx.train.rendezvous import starting_ranks
from alia_ctx.train.roll_call import RollCall
from alia_ctx.train.stopping import StopRequests, Watchdog
from alia_ctx.train.task import StageTask
from alia_ctx.train.trainer import StageTrainer
from alia_ctx.workflow.chain import (
    check_trained,
    configured_tokenizer,
    orphaned,
    stage_task,
)
from alia_ctx.workflow.chat_template import template_of_stage
from alia_ctx.workflow.conversations import held_out_conversations
from alia_ctx.workflow.evaluation_in_training import held_out_evaluation
from alia_ctx.workflow.function_calls import conversation_evaluation
from alia_ctx.workflow.importing import require_base, require_imported_from_base
from alia_ctx.workflow.plans import not_seen, open_plan
from alia_ctx.workflow.readiness import require_ready
from alia_ctx.workflow.staging import staged
from alia_ctx.workflow.stores import (
    open_store,
    require_same_held_out,
    require_same_options,
    tokenizer_of_text,
)
from alia_ctx.workflow.training_block import training_block

if TYPE_CHECKING:
    from alia_ctx.mcore.engine import MegatronEngine


def stage_engine(
    run: RunConfig,
    name: str,
    optimizer: OptimizerConfig | None,
    layout: Layout | None = None,
) -> MegatronEngine:
    """The engine of a stage, with random weights; without an optimizer it only evaluates.
    `layout`: default, the stage's.
    """
    from alia_ctx.mcore.engine import MegatronEngine

    stage = run.stage(name)
    return MegatronEngine(
        run.model,
        stage.rope,
        stage.context,
        layout or stage.layout,
        run.engine,
        optimizer,
        recompute=stage.recompute if optimizer else "none",
        seed=run.seed,
    )


def train(run: RunConfig, name: str, *, exit_before: float | None = None) -> Path:
    """Train a stage to its end on the ranks that this process is one of. Returns the
    last checkpoint.

    `exit_before`: seconds from the start of the process by which it must have saved and
    left (RequeueError).
    """
    if is_main():
        say("loading Megatron-Core")
    from alia_ctx.mcore.runtime import Distributed

    stage, task = run.stage(name), stage_task(run, name)
    with ExitStack() as entered:
        stop = entered.enter_context(StopRequests(exit_before))
        entered.enter_context(Distributed(run.engine))
        ranks = starting_ranks()
        done: list[StageTrainer] = []

        def update() -> int:
            return done[0].update if done else 0

        call = RollCall(ranks.rank, task.directory, update, f"stage {name}")
        entered.enter_context(call)
        own = RankName.of_this_process(ranks.rank)
        call.names = [
            RankName(*fields)
            for fields in ranks.gather_objects(dataclasses.astuple(own))
        ]
        # First of all: a second trainer shall not find out after minutes of start.
        entered.enter_context(
            exclusive(
                task.directory,
                f"alia-ctx train --stage {name}",
                rank=ranks.rank,
                gather=ranks.gather_objects,
            )
        )
        if ranks.rank == 0:
            say("reading the plan and the token stores")
        on_first_rank(ranks, lambda: _require_as_made(run))
        local = staged(run, name, ranks)
        data = on_all_ranks(
            ranks,
            f"what stage {name} is trained on, below {run.output}",
            lambda: _open_data(run, name, local),
            _Data.identity,
        )
        plan = data.plan
        if ranks.rank == 0:
            say(f"the data is there: {len(plan):,} rows in {plan.updates:,} updates")
            notes = not_seen(run, name), orphaned(run, name)
            for note in filter(None, notes):
                say(f"note: {escape(note)}")
            say(f"building the model of {run.model.parameters():,} parameters")
        engine = stage_engine(run, name, run.optimizer)
        main = engine.rank == 0
        watchdog = entered.enter_context(
            Watchdog(run.engine.hang_minutes * 60, task.directory, engine.rank, update)
        )
        tokens = _bar_tokens(stage, plan, task.updates)
        bar = entered.enter_context(meter(f"train {name}", tokens, "token", shown=main))
        layout = {"dp": engine.data_parallel_size, **dataclasses.asdict(engine.layout)}
        about: dict[str, Any] = {
            "layout": layout,
            "kernel": engine.kernel,
            "layers": engine.layers.words,
            "fp8": engine.fp8,
        }
        if engine.kernels_passed_over:
            about["kernels_passed_over"] = list(engine.kernels_passed_over)
        if engine.layers.passed_over:
            about["layers_passed_over"] = list(engine.layers.passed_over)
        trainer = StageTrainer(
            dataclasses.replace(
                task,
                tokenizer=data.tokenizer,
                configured=lambda: data.configured,
                chat_template=data.chat_template,
                about=about,
            ),
            engine,
            plan,
            stop=stop,
            watchdog=watchdog,
            report=lambda line: _show_update(bar, task, plan, line),
            notice=_warn if main else _be_silent,
            evaluate=_evaluation(run, name, engine, watchdog.beat)
            if run.evaluation.every_updates
            else None,
        )
        done.append(trainer)
        stop.lost = partial(unsaved, trainer)
        updates = trainer.prepare()
        if main:
            for text in training_block(run, name, plan, engine, trainer):
                say(escape(text))
        # The first update of a start compiles kernels and finds memory.
        bar.begin_at(_bar_tokens(stage, plan, updates), unmeasured=1)
        return trainer.train()


def unsaved(trainer: StageTrainer) -> str:
    """Which updates would be lost now, in words; nothing where none would be. It asks no
    file system, which may be what hangs.
    """
    saved = checkpoint.update_of(trainer.checkpoints.whole)
    if trainer.update <= saved:
        return ""
    which = f"updates {saved + 1:,} to {trainer.update:,} are"
    if trainer.update == saved + 1:
        which = f"update {trainer.update:,} is"
    return f"{which} not saved; another start does them again after update {saved:,}"


@dataclasses.dataclass(frozen=True)
class _Data:
    """What a stage is trained on: its plan, the held-out text where it is measured while
    training, the tokenizers of the text and of the configuration, and the template of
    its conversations.
    """

    plan: PackPlan
    held_out: TokenStore | None
    tokenizer: dict[str, str] | None
    configured: dict[str, str] | None
    chat_template: dict[str, Any] | None

    def identity(self) -> list[str]:
        text = "" if self.held_out is None else self.held_out.fingerprint
        stated = (self.tokenizer, self.configured, self.chat_template)
        return [self.plan.fingerprint, text, *map(str, stated)]


def _require_as_made(run: RunConfig) -> None:
    """What one rank compares for all, as it reads weights and texts."""
    require_imported_from_base(run)
    if _measures_on_text(run):
        require_same_held_out(run)


def _measures_on_text(run: RunConfig) -> bool:
    """Whether held-out text is measured while a stage trains."""
    evaluation = run.evaluation
    measured = evaluation.every_updates and evaluation.during_on_text
    return bool(measured and evaluation.held_out is not None)


def _open_data(run: RunConfig, name: str, local: RunConfig) -> _Data:
    """All that refuses a start is said here, before an engine is built. `local`: with the
    copies of the text on this host, if there are any.
    """
    check_trained(run, name)
    require_base(run, name)
    plan = open_plan(local, name)
    require_same_options(run, name)
    require_ready(run, name)
    held_out = open_store(run, HELD_OUT) if _measures_on_text(run) else None
    return _Data(
        plan,
        held_out,
        tokenizer_of_text(run, name),
        configured_tokenizer(run),
        template_of_stage(run, name),
    )


def _evaluation(
    run: RunConfig, name: str, engine: Engine, beat: Callable[[], None]
) -> Callable[[], dict[str, Any]]:
    """What is measured while the stage trains: what `evaluation.during` names, as far as
    it needs no held-out text where there is none, and the conversations that the stage
    holds out, under `conversations`.
    """
    text = chat = None
    mark = ""
    evaluation = run.evaluation
    if evaluation.held_out is None:
        without = set(evaluation.during) - set(evaluation.during_on_text)
        during = [n for n in evaluation.during if n in without]
        evaluation = dataclasses.replace(evaluation, during=during)
        run = dataclasses.replace(run, evaluation=evaluation)
    if evaluation.during:
        text = held_out_evaluation(run, name, engine, beat)
    if run.stage(name).pack.held_out_instances:
        chat = conversation_evaluation(run, name, engine, beat)
        held_out = held_out_conversations(run, name).fingerprint
        mark = statement_checksum([held_out, run.engine.precision])[:12]

    def measured() -> dict[str, Any]:
        began = time.perf_counter()
        line = both()
        return {**line, "evaluate_seconds": time.perf_counter() - began}

    def both() -> dict[str, Any]:
        line = text() if text is not None else {"metrics": {}}
        if chat is None:
            return line
        found = chat()
        values = (("conversation_loss", "loss"), ("calls_exact", "calls_exact"))
        metrics = {m: found[key] for m, key in values if found[key] is not None}
        marks = dict.fromkeys(metrics, mark) | line.get(MEASURED_ON, {})
        metrics |= line["metrics"]
        found_of_both = {"conversations": found, "metrics": metrics, MEASURED_ON: marks}
        return line | found_of_both

    return measured


def _show_update(
    bar: Meter, task: StageTask, plan: PackPlan, line: dict[str, Any]
) -> None:
    note = (
        f"update {line['update']}/{task.updates} loss {line['loss']:.4f} grad "
        f"norm {line['gradient_norm']:.2f}"
    )
    bar.update(_bar_tokens(task.stage, plan, line["update"]), note)


def _bar_tokens(stage: StageConfig, plan: PackPlan, updates: int) -> float:
    """What the first `updates` updates hold, for the progress bar."""
    if plan.of_conversations:
        return float(plan.stats["tokens"]) * updates / plan.updates
    return updates * stage.rows_per_update * stage.context


def _warn(text: str) -> None:
    say(f"[bold red]{escape(text)}")


def _be_silent(text: str) -> None:
    """On the ranks whose notices would only repeat the first one's."""
