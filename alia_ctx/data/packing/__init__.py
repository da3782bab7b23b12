"""Token stores -> a plan of training rows -> PackedRow.

An index; no token is copied until a row is read.
"""

from alia_ctx.data.packing.build import build_plan, plan_identity
from alia_ctx.data.packing.build_instances import (
    build_instance_plan,
    instance_plan_identity,
)
from alia_ctx.data.packing.contamination import Contamination, find_contamination
from alia_ctx.data.packing.continued import named_rows, rows_as_named
from alia_ctx.data.packing.copies import find_copies
from alia_ctx.data.packing.duplicates import (
    duplicates_of,
    held_out_there,
    write_held_out,
)
from alia_ctx.data.packing.instances import (
    draw_held_out,
    first_row_of_update,
    held_out_shares,
    row_lengths,
    shortest_row,
    updates_of_epochs,
)
from alia_ctx.data.packing.left_out import held_out_statement, kept_out_statement
from alia_ctx.data.packing.place import is_extended
from alia_ctx.data.packing.plan import PackPlan
from alia_ctx.data.packing.plan_files import Statement, read_statement
from alia_ctx.data.packing.reading import TextByLength
from alia_ctx.data.packing.repeats import SourceRepeats, find_repeats
from alia_ctx.data.packing.row import IGNORE, PackedRow, weigh_by_piece
from alia_ctx.data.packing.shares import missed_buckets, missed_shares
from alia_ctx.data.packing.spec import LengthBucket, PackSpec
from alia_ctx.data.packing.summary import (
    contamination_table,
    copy_places,
    draw_plan,
    plan_table,
    repeats_table,
)

__all__ = [
    "IGNORE",
    "Contamination",
    "LengthBucket",
    "PackPlan",
    "PackSpec",
    "PackedRow",
    "SourceRepeats",
    "Statement",
    "TextByLength",
    "build_instance_plan",
    "build_plan",
    "contamination_table",
    "copy_places",
    "draw_held_out",
    "draw_plan",
    "duplicates_of",
    "find_contamination",
    "find_copies",
    "find_repeats",
    "first_row_of_update",
    "held_out_shares",
    "held_out_statement",
    "held_out_there",
    "instance_plan_identity",
    "is_extended",
    "kept_out_statement",
    "missed_buckets",
    "missed_shares",
    "named_rows",
    "plan_identity",
    "plan_table",
    "read_statement",
    "repeats_table",
    "row_lengths",
    "rows_as_named",
    "shortest_row",
    "updates_of_epochs",
    "weigh_by_piece",
    "write_held_out",
]
