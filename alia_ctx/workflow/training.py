"""Train one stage on the ranks that this process is one of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from alia_ctx.config.run import OptimizerConfig, RunConfig, StageConfig
from alia_ctx.files import exclusive
from alia_ctx.progress import Meter, meter, say
from alia_ctx.spec.layout import Layout
from alia_ctx.train.stopping import StopRequests, Watchdog
from alia_ctx.train.trainer import StageTrainer
from alia_ctx.workflow.chain import check_trained, stage_task
from alia_ctx.workflow.data import open_plan
from alia_ctx.workflow.evaluation_in_training import held_out_evaluation

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
    from alia_ctx.mcore.runtime import Distributed

    stage, task = run.stage(name), stage_task(run, name)
    check_trained(run, name)
    plan = open_plan(run, name)
    with StopRequests(exit_before) as stop, Distributed(run.engine):
        engine = stage_engine(run, name, run.optimizer)
        main = engine.rank == 0
        tokens = stage.rows * stage.context
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
                report=lambda line: _show_update(bar, stage, line),
                notice=_warn if main else _be_silent,
                evaluate=held_out_evaluation(run, name, engine, watchdog.beat)
                if run.evaluation.every_updates
                else None,
            )
            bar.begin_at(trainer.prepare() * stage.rows_per_update * stage.context)
            return trainer.train()


def _show_update(bar: Meter, stage: StageConfig, line: dict[str, Any]) -> None:
    note = (
        f"update {line['update']}/{stage.updates} loss {line['loss']:.4f} grad "
        f"norm {line['gradient_norm']:.2f}"
    )
    bar.update(line["update"] * stage.rows_per_update * stage.context, note)


def _warn(text: str) -> None:
    say(f"[bold red]{escape(text)}")


def _be_silent(text: str) -> None:
    """On the ranks whose notices would only repeat the first one's."""
