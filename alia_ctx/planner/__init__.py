"""What a stage will need before it is queued: memory, time, layouts that fit, and how far
its RoPE reaches.

All of it is arithmetic on sizes, with two constants of speed that were fitted to published
throughput. docs/planner.md has the formulas and the errors.
"""

from alia_ctx.planner.memory import RankMemory
from alia_ctx.planner.rope_choices import (
    RopeFigures,
    choice_table,
    draw_choices,
    left_out_choices,
    require_drawable,
    standard_choices,
    stretched_further,
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
from alia_ctx.planner.search import (
    GpuCount,
    LayoutChoice,
    best_by_count,
    powers_of_two,
    suggest_layouts,
    why_first,
)
from alia_ctx.planner.stage import StagePlan, plan_stage
from alia_ctx.planner.tables import (
    assumptions_table,
    choices_table,
    counts_table,
    duration,
    memory_table,
    plan_table,
)
from alia_ctx.planner.workload import RowSizes, Workload

__all__ = [
    "GpuCount",
    "LayoutChoice",
    "RankMemory",
    "RopeFigures",
    "RopeReach",
    "RowSizes",
    "StagePlan",
    "Workload",
    "assumptions_table",
    "best_by_count",
    "choice_table",
    "choices_table",
    "counts_table",
    "draw_choices",
    "duration",
    "first_negative_distance",
    "inverse_frequencies",
    "left_out_choices",
    "memory_table",
    "plain_bases",
    "plan_stage",
    "plan_table",
    "powers_of_two",
    "require_drawable",
    "rope_figures",
    "rope_reach",
    "standard_choices",
    "stretched_further",
    "suggest_layouts",
    "why_first",
    "with_configured",
]
