"""Input files -> documents:

plain text, JSON and Parquet, in slices that can be read on their own.
"""

from alia_ctx.data.documents.chat_spec import ChatSpec
from alia_ctx.data.documents.counts import REASONS, DocumentCounts, LeftOut
from alia_ctx.data.documents.inputs import Inputs, SourceSpec, find_inputs
from alia_ctx.data.documents.reading import (
    Document,
    Item,
    nothing_to_read,
    read_blocks,
    read_documents,
    read_items,
    read_slice,
)
from alia_ctx.data.documents.slices import Slice, plan_shards, usual_shard_bytes

__all__ = [
    "REASONS",
    "ChatSpec",
    "Document",
    "DocumentCounts",
    "Inputs",
    "Item",
    "LeftOut",
    "Slice",
    "SourceSpec",
    "find_inputs",
    "nothing_to_read",
    "plan_shards",
    "read_blocks",
    "read_documents",
    "read_items",
    "read_slice",
    "usual_shard_bytes",
]
