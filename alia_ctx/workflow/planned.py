"""A stage as the planner has it, for those that want one figure of it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from alia_ctx.config.layouts import search_settings
from alia_ctx.config.run import RunConfig
from alia_ctx.planner import StagePlan, plan_stage
from alia_ctx.spec.execution import Recompute
from alia_ctx.workflow.mixture import sizes_of


def planned_stage(run: RunConfig, name: str) -> StagePlan:
    """A stage on its own layout and ranks, by the sizes of its rows and not by its pack
    plan. AliaError where it cannot be planned.
    """
    stage = run.stage(name)
    tokens, update_tokens, _ = sizes_of(run, name)
    shared = search_settings(run, stage)
    del shared["shortest_row"]
    return plan_stage(
        *(run.model, stage.rope, stage.context, stage.layout),
        *(run.world_size(stage), tokens, update_tokens, stage.recompute),
        offload=run.engine.offload_activations,
        **shared,
    )


def room_on_a_gpu(run: RunConfig, name: str, there: float) -> tuple[str, list[str]]:
    """Planned memory of a stage beside the `there` GiB of a GPU, in words, and, where it
    may have no room, what gives it some. AliaError where it cannot be planned.
    """
    stage = run.stage(name)
    needed = planned_stage(run, name).fullest.total
    words = f"{needed:.0f} GiB a GPU by the planner, of {there:.0f}"
    if needed <= there:
        return words, []
    words += ": it may run out"
    modes = get_args(Recompute)
    for mode in modes[modes.index(stage.recompute) + 1 :]:
        other = replace(
            run, stages={**run.stages, name: replace(stage, recompute=mode)}
        )
        less = planned_stage(other, name).fullest.total
        if less <= there:
            return words, [f"stages.{name}.recompute={mode} takes {less:.0f}"]
    return words, ["recomputation is not enough; raise tp, cp or pp (alia-ctx plan)"]
