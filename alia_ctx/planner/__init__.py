"""What a stage will need before it is queued: memory, time, layouts that fit, and how far
its RoPE reaches.

All of it is arithmetic on sizes; nothing here has been fitted to a measurement.
docs/planner.md has the formulas.
"""

from alia_ctx.planner.memory import RankMemory
from alia_ctx.planner.rope_choices import (
    RopeFigures,
    choice_table,
    draw_choices,
    standard_choices,
    with_configured,
)
from alia_ctx.planner.rope_choices import figures as rope_figures
from alia_ctx.planner.rope_reach import (
    RopeReach,
    first_negative_distance,
    inverse_frequencies,
    plain_bases,
    rope_reach,
)
from alia_ctx.planner.stage import LayoutChoice, StagePlan, plan_stage, suggest_layouts
from alia_ctx.planner.tables import choices_table, memory_table, plan_table
from alia_ctx.planner.workload import Workload

__all__ = [
    "LayoutChoice",
    "RankMemory",
    "RopeFigures",
    "RopeReach",
    "StagePlan",
    "Workload",
    "choice_table",
    "choices_table",
    "draw_choices",
    "first_negative_distance",
    "inverse_frequencies",
    "memory_table",
    "plain_bases",
    "plan_stage",
    "plan_table",
    "rope_figures",
    "rope_reach",
    "standard_choices",
    "suggest_layouts",
    "with_configured",
]
