"""Train one stage on the ranks that this process is one of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from alia_ctx.config.run import OptimizerConfig, RunConfig, StageConfig
from alia_ctx.data.packing import PackPlan
from alia_ctx.files import exclusive
from alia_ctx.progress import Meter, meter, say
from alia_ctx.train.engine import Engine
from alia_ctx.train.stopping import StopRequests, Watchdog
from alia_ctx.train.trainer import StageTrainer
from alia_ctx.workflow.chain import check_trained, stage_task
from alia_ctx.workflow.data import open_plan
from alia_ctx.workflow.evaluation import held_out_evaluation
from alia_ctx.workflow.function_calls import conversation_evaluation

if TYPE_CHECKING:
    from alia_ctx.mcore.engine import MegatronEngine


def stage_engine(
    run: RunConfig, name: str, optimizer: OptimizerConfig | None
) -> MegatronEngine:
    """The engine of a stage, with random weights; without an optimizer it only evaluates."""
    from alia_ctx.mcore.engine import MegatronEngine

    stage = run.stage(name)
    return MegatronEngine(
        run.model,
        stage.rope,
        stage.context,
        stage.layout,
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
    from alia_ctx.mcore.runtime import Distributed

    stage, task = run.stage(name), stage_task(run, name)
    check_trained(run, name)
    plan = open_plan(run, name)
    with StopRequests(exit_before) as stop, Distributed(run.engine):
        engine = stage_engine(run, name, run.optimizer)
        main = engine.rank == 0
        tokens = _bar_tokens(stage, plan, plan.updates)
        with (
            exclusive(
                task.directory,
                f"alia-ctx train --stage {name}",
                rank=engine.rank,
                gather=engine.gather_objects,
            ),
            Watchdog(
                run.engine.hang_minutes * 60, task.directory, engine.rank
            ) as watchdog,
            meter(f"train {name}", tokens, "token", shown=main) as bar,
        ):
            trainer = StageTrainer(
                task,
                engine,
                plan,
                stop=stop,
                watchdog=watchdog,
                report=lambda line: _show_update(bar, stage, plan, line),
                notice=_warn if main else _be_silent,
                evaluate=_evaluation(run, name, engine, watchdog.beat)
                if run.evaluation.every_updates
                else None,
            )
            bar.begin_at(_bar_tokens(stage, plan, trainer.prepare()))
            return trainer.train()


def _evaluation(
    run: RunConfig, name: str, engine: Engine, beat: Callable[[], None]
) -> Callable[[], dict[str, Any]]:
    """What is measured while the stage trains: held-out text, and the conversations that
    the stage holds out, under `conversations`.
    """
    text = chat = None
    if run.evaluation.held_out is not None:
        text = held_out_evaluation(run, name, engine, beat)
    if run.stage(name).pack.held_out_instances:
        chat = conversation_evaluation(run, name, engine, beat)

    def measured() -> dict[str, Any]:
        losses = text() if text is not None else {}
        return {**losses, "conversations": chat()} if chat is not None else losses

    return measured


def _show_update(
    bar: Meter, stage: StageConfig, plan: PackPlan, line: dict[str, Any]
) -> None:
    note = (
        f"update {line['update']}/{plan.updates} loss {line['loss']:.4f} grad "
        f"norm {line['gradient_norm']:.2f}"
    )
    bar.update(_bar_tokens(stage, plan, line["update"]), note)


def _bar_tokens(stage: StageConfig, plan: PackPlan, updates: int) -> float:
    """What the first `updates` updates hold, for the progress bar."""
    if plan.of_conversations:
        return float(plan.stats["tokens"]) * updates / plan.updates
    return updates * stage.rows_per_update * stage.context


def _warn(text: str) -> None:
    say(f"[bold red]{escape(text)}")


def _be_silent(text: str) -> None:
    """On the ranks whose notices would only repeat the first one's."""
