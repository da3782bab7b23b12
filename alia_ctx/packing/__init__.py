"""Token stores -> a plan of training rows -> PackedRow. An index; no token is copied until a row is read."""

from alia_ctx.packing.build import build_plan
from alia_ctx.packing.inspect import draw_plan, plan_table
from alia_ctx.packing.loader import prefetch_rows
from alia_ctx.packing.plan import PackPlan
from alia_ctx.packing.row import IGNORE, PackedRow
from alia_ctx.packing.spec import LengthBucket, PackSpec

__all__ = [
    "IGNORE",
    "LengthBucket",
    "PackPlan",
    "PackSpec",
    "PackedRow",
    "build_plan",
    "draw_plan",
    "plan_table",
    "prefetch_rows",
]
