"""A stage as the planner has it, for those that want one figure of it."""

from __future__ import annotations

from alia_ctx.config.layouts import search_settings
from alia_ctx.config.run import RunConfig
from alia_ctx.planner import StagePlan, plan_stage
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
