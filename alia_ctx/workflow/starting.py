"""What each of the ranks reads that a command was started on, before they work together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.identity import statement_checksum
from alia_ctx.train.agreement import on_all_ranks
from alia_ctx.train.rendezvous import starting_ranks
from alia_ctx.workflow.evaluation import EvaluationTask


def load_on_all_ranks(
    config: Path, overrides: Sequence[str], stages: Sequence[str]
) -> RunConfig:
    """`load_run`, once it succeeds alike on all ranks, if several were started.

    It looks at more than its own file (checkpoints, texts), so a rank whose mount is
    gone fails here; the others must not wait for it. Raises as `load_run` and
    `on_all_ranks` do, RequeueError where the ranks cannot meet.
    """
    return on_all_ranks(
        starting_ranks(),
        f"the configuration {config}",
        lambda: load_run(config, overrides, stages=stages),
        lambda run: statement_checksum(run.to_dict()),
    )


def task_on_all_ranks(make: Callable[[], EvaluationTask]) -> EvaluationTask:
    """What `make` finds is to be evaluated, once it is the same on all ranks."""
    return on_all_ranks(
        starting_ranks(),
        "what is evaluated",
        make,
        lambda task: [
            (e.name, e.context, e.evaluators, statement_checksum(e.model.statement))
            for e in task.evaluations
        ],
    )
