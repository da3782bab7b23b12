"""Held-out documents as rows (packed sequences): every model sees the same tokens, in
blocks of the context it is given.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from alia_ctx.data.packing import PackedRow
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError


@dataclass(frozen=True)
class HeldOutRow:
    """A row of blocks of documents; `position_offsets` says where each begins in its
    document.
    """

    row: PackedRow
    position_offsets: tuple[int, ...]


def held_out_rows(
    store: TokenStore,
    *,
    context: int,
    length: int,
    documents: int,
    row_length: int | None = None,
) -> list[HeldOutRow]:
    """The first `length` tokens of the first `documents` documents that have as many, in
    blocks of `context`.

    A block is a document of its own to the model: it sees nothing before the block. So
    with `context` below `length` this measures a model that is limited to its own
    context, at the very tokens that a longer context would see more of. Rows have
    `row_length` tokens (default: one block); as many blocks share a row as fit, the
    rest of it is fill. Raises DataError where no document is long enough.
    """
    row_length = row_length or context
    long_enough = np.flatnonzero(store.lengths >= length)[:documents]
    if not len(long_enough):
        raise DataError(
            f"{store.prefix}: no document has {length} tokens (the longest has "
            f"{int(store.lengths.max(initial=0))}); "
            "give longer held-out documents under evaluation.held_out, or evaluate at "
            "a shorter length"
        )
    blocks = [
        (int(d), start) for d in long_enough for start in range(0, length, context)
    ]
    together = max(1, row_length // context)
    return [
        _row(store, blocks[i : i + together], context, length, row_length)
        for i in range(0, len(blocks), together)
    ]


def _row(
    store: TokenStore,
    blocks: list[tuple[int, int]],
    context: int,
    length: int,
    row_length: int,
) -> HeldOutRow:
    texts = [
        store.document(d, start, min(start + context, length)) for d, start in blocks
    ]
    row = PackedRow.from_documents(texts, length=row_length)
    numbered = dataclasses.replace(row, doc_ids=np.array([d for d, _ in blocks]))
    return HeldOutRow(numbered, tuple(start for _, start in blocks))
