"""What a stage will need before it is queued: memory, time, layouts that fit, and how far
its RoPE reaches.

All of it is arithmetic on sizes; nothing here has been fitted to a measurement.
docs/planner.md has the formulas.
"""

from alia_ctx.planner.memory import RankMemory
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
    "RopeReach",
    "StagePlan",
    "Workload",
    "choices_table",
    "first_negative_distance",
    "inverse_frequencies",
    "memory_table",
    "plain_bases",
    "plan_stage",
    "plan_table",
    "rope_reach",
    "suggest_layouts",
]
