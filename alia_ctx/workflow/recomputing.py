"""The loss of a line of the log computed again, from the plan and the checkpoint before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import PackPlan, weigh_by_piece
from alia_ctx.errors import CheckpointError
from alia_ctx.train.agreement import on_all_ranks
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.train.rendezvous import starting_ranks
from alia_ctx.workflow.chain import (
    check_trained,
    run_directory,
    stage_task,
    started_from,
)
from alia_ctx.workflow.evaluated_models import find_layout
from alia_ctx.workflow.plans import open_plan
from alia_ctx.workflow.training import stage_engine


@dataclass(frozen=True)
class RecomputedLoss:
    """The loss of one update, computed again; `logged` is None where the log has none."""

    update: int
    loss: float
    logged: float | None

    def __str__(self) -> str:
        if self.logged is None:
            return (
                f"update {self.update}: loss {self.loss:.9f}; the log has none "
                "(skipped, or not there)"
            )
        # The loss of an update in which nothing is predicted is 0.
        difference = abs(self.loss - self.logged) / (abs(self.logged) or 1.0)
        return (
            f"update {self.update}: loss {self.loss:.9f}, in the log "
            f"{self.logged:.9f}, relative {difference:.1e}"
        )


def recompute(run: RunConfig, name: str, update: int) -> RecomputedLoss:
    """Compute the training loss of `update` (from 1, as in the log) again: forward only,
    on any layout. Collective.

    CheckpointError where no checkpoint holds the state before it, naming the updates
    that can be recomputed; IdentityError where the stage was trained with other settings.
    """
    from alia_ctx.mcore.runtime import Distributed

    with Distributed(run.engine):
        plan, path = on_all_ranks(
            starting_ranks(),
            f"what update {update} of stage {name} was computed from",
            lambda: _what_was_before(run, name, update),
            lambda before: [before[0].fingerprint, str(before[1])],
        )
        # A layout for the ranks that are there, not the training's.
        layout = find_layout(run.engine, run.model, run.stage(name).context)
        engine = stage_engine(run, name, None, layout)
        if path is not None:
            checkpoint.open_checkpoint(path, engine)
            engine.load(path / checkpoint.STATE, with_optimizer=False)
        rows = [plan.row(i) for i in plan.rows_of_update(update - 1)]
        if run.stage(name).loss_weighting == "conversation":
            rows = weigh_by_piece(rows)
        own = rows[engine.data_parallel_rank :: engine.data_parallel_size]
        losses = engine.row_losses(own)
        loss, _ = engine.reduce_losses(losses if own else ())
    lines = read_lines(run_directory(run).metrics(name))
    logged = {line["update"]: line["loss"] for line in lines}
    return RecomputedLoss(update, loss, logged.get(update))


def _what_was_before(
    run: RunConfig, name: str, update: int
) -> tuple[PackPlan, Path | None]:
    check_trained(run, name, reading=True)
    return open_plan(run, name), _state_before(run, name, update)


def _state_before(run: RunConfig, name: str, update: int) -> Path | None:
    """The checkpoint that an update started from; None where that was random weights."""
    if update == 1:
        return started_from(run, name)
    updates = stage_task(run, name).updates
    by_update = {
        checkpoint.update_of(path): path
        for path in checkpoint.list_checkpoints(run_directory(run).checkpoints(name))
    }
    if update - 1 in by_update and update <= updates:
        return by_update[update - 1]
    possible = [1, *(u + 1 for u in sorted(by_update) if u < updates)]
    raise CheckpointError(
        f"no checkpoint of stage {name} holds the state before update {update}; "
        f"updates {', '.join(map(str, possible))} can be recomputed "
        "(checkpoint.keep_every keeps more)"
    )
