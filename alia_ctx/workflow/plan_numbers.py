"""A plan as numbers, for other programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from alia_ctx.planner import StagePlan


def plan_numbers(plan: StagePlan) -> dict[str, Any]:
    """Seconds, GiB and tokens; where there is no estimate of the time, None in its place and
    `untimed` says why.
    """
    work, timing = plan.work, plan.timing
    times: dict[str, Any] = {
        "update_seconds": {
            **{name: s for name, s in vars(timing).items() if name != "mfu"},
            "total": timing.total,
        },
        "mfu": timing.mfu,
        "seconds": plan.seconds,
        "node_hours": plan.node_hours,
    }
    if plan.untimed:
        times = {**dict.fromkeys(times), "untimed": plan.untimed}
    return {
        "layout": dataclasses.asdict(work.layout),
        "data_parallel": work.data_parallel,
        "gpus": work.world_size,
        "nodes": plan.nodes,
        "precision": work.precision,
        "recompute": work.recompute,
        "offload": work.offload,
        "fits": plan.fits,
        "may_fit": plan.may_fit,
        "verdict": plan.verdict,
        "memory_gib": {
            "total": plan.fullest.total,
            "without_guesses": plan.fullest.without_guesses,
            "pipeline_rank": plan.fullest.pipeline_rank,
            **plan.fullest.peak_items,
        },
        "host_gib": plan.host_items,
        "checkpoint_gib": plan.checkpoint_gib,
        "updates": work.updates,
        "rows_per_update": work.rows_per_update,
        "row_tokens": work.row_tokens,
        "tokens_per_update": work.tokens_per_update,
        "attention": work.attention,
        **times,
        "masked_share": plan.masked_share,
    }
