"""The loss of a line of the log computed again, from the plan and the checkpoint before it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import CheckpointError
from alia_ctx.train.metrics_log import read_lines
from alia_ctx.workflow.chain import check_trained, origin, run_directory
from alia_ctx.workflow.data import open_plan
from alia_ctx.workflow.evaluated_models import find_layout
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

    check_trained(run, name)
    plan = open_plan(run, name)
    path = _state_before(run, name, update)
    with Distributed(run.engine):
        # A layout for the ranks that are there, not the training's.
        layout = find_layout(run.engine, run.model, run.stage(name).context)
        engine = stage_engine(run, name, None, layout)
        if path is not None:
            checkpoint.open_checkpoint(path, engine)
            engine.load(path / checkpoint.STATE, with_optimizer=False)
        rows = plan.rows_of_update(update - 1)
        own = rows[engine.data_parallel_rank :: engine.data_parallel_size]
        losses = engine.row_losses([plan.row(i) for i in own])
        loss, _ = engine.reduce_losses(losses if own else ())
    lines = read_lines(run_directory(run).metrics(name))
    logged = {line["update"]: line["loss"] for line in lines}
    return RecomputedLoss(update, loss, logged.get(update))


def _state_before(run: RunConfig, name: str, update: int) -> Path | None:
    """The checkpoint that an update started from; None where that was random weights."""
    if update == 1:
        return origin(run, name)
    stage = run.stage(name)
    by_update = {
        int(path.name.rpartition("-")[2]): path
        for path in checkpoint.list_checkpoints(run_directory(run).checkpoints(name))
    }
    if update - 1 in by_update and update <= stage.updates:
        return by_update[update - 1]
    possible = [1, *(u + 1 for u in sorted(by_update) if u < stage.updates)]
    raise CheckpointError(
        f"no checkpoint of stage {name} holds the state before update {update}; "
        f"updates {', '.join(map(str, possible))} can be recomputed "
        "(checkpoint.keep_every keeps more)"
    )
