"""Train one stage on the ranks that this process is one of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from alia_ctx.config.run import RunConfig, StageConfig
from alia_ctx.files import exclusive
from alia_ctx.progress import meter, say
from alia_ctx.train.run_directory import stage_directory
from alia_ctx.train.stopping import StopRequests, Watchdog
from alia_ctx.train.trainer import StageTrainer
from alia_ctx.workflow.data import open_plan
from alia_ctx.workflow.evaluation import held_out_evaluation


def train(run: RunConfig, name: str, *, exit_before: float | None = None) -> Path:
    """Train a stage to its end on the ranks that this process is one of. Returns the
    last checkpoint.

    `exit_before`: seconds from the start of the process by which it must have saved and
    left (RequeueError).
    """
    from alia_ctx.mcore.engine import MegatronEngine
    from alia_ctx.mcore.runtime import Distributed

    stage = run.stage(name)
    plan = open_plan(run, name)
    with StopRequests(exit_before) as stop, Distributed(run.engine):
        engine = MegatronEngine(
            run.model,
            stage.rope,
            stage.context,
            stage.layout,
            run.engine,
            run.optimizer,
            recompute=stage.recompute,
            seed=run.seed,
        )
        main = engine.rank == 0
        hang = Watchdog(
            run.engine.hang_minutes * 60, stage_directory(run, name), engine.rank
        )
        with (
            exclusive(
                stage_directory(run, name),
                f"alia-ctx train --stage {name}",
                rank=engine.rank,
                gather=engine.gather_objects,
            ),
            hang,
            meter(
                f"train {name}", stage.rows * stage.context, "token", shown=main
            ) as bar,
        ):
            trainer = StageTrainer(
                run,
                name,
                engine,
                plan,
                stop=stop,
                watchdog=hang,
                report=lambda line: _show_update(bar, stage, line),
                notice=(lambda text: say(f"[bold red]{escape(text)}"))
                if main
                else (lambda text: None),
                evaluate=held_out_evaluation(run, name, engine, hang.beat)
                if run.evaluation.every_updates
                else None,
            )
            bar.begin_at(trainer.prepare() * stage.rows_per_update * stage.context)
            return trainer.train()


def _show_update(bar: Any, stage: StageConfig, line: dict[str, Any]) -> None:
    note = (
        f"update {line['update']}/{stage.updates} loss {line['loss']:.4f} grad "
        f"norm {line['gradient_norm']:.2f}"
    )
    bar.update(line["update"] * stage.rows_per_update * stage.context, note)
