"""Token stores -> a plan of training rows -> PackedRow.

An index; no token is copied until a row is read.
"""

from alia_ctx.data.packing.build import build_plan
from alia_ctx.data.packing.contamination import Contamination, find_contamination
from alia_ctx.data.packing.plan import PackPlan
from alia_ctx.data.packing.plan_files import read_statement
from alia_ctx.data.packing.row import IGNORE, PackedRow
from alia_ctx.data.packing.spec import LengthBucket, PackSpec
from alia_ctx.data.packing.summary import contamination_table, draw_plan, plan_table

__all__ = [
    "IGNORE",
    "Contamination",
    "LengthBucket",
    "PackPlan",
    "PackSpec",
    "PackedRow",
    "build_plan",
    "contamination_table",
    "draw_plan",
    "find_contamination",
    "plan_table",
    "read_statement",
]
