"""Input files -> documents:

plain text, JSON lines and Parquet, in slices that can be read on their own.
"""

from alia_ctx.data.documents.inputs import (
    Inputs,
    Slice,
    SourceSpec,
    find_inputs,
    plan_shards,
)
from alia_ctx.data.documents.reading import (
    Document,
    DocumentCounts,
    read_documents,
    read_slice,
)

__all__ = [
    "Document",
    "DocumentCounts",
    "Inputs",
    "Slice",
    "SourceSpec",
    "find_inputs",
    "plan_shards",
    "read_documents",
    "read_slice",
]
