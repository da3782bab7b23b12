"""Held-out documents as rows: every model sees the same tokens, in blocks of the context it is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.packing import PackedRow
from alia_ctx.tokens import TokenStore


@dataclass(frozen=True)
class HeldOutRow:
    """One block of one document; `position_offset` is where the block begins in it."""

    row: PackedRow
    position_offset: int


def held_out_rows(store: TokenStore, *, context: int, length: int, documents: int) -> list[HeldOutRow]:
    """The first `length` tokens of the first `documents` documents that have as many, in blocks of `context`.

    A block is a document of its own to the model: it sees nothing before the block. So with `context` below
    `length` this measures a model that is limited to its own context, at the very tokens that a longer context
    would see more of. Where `context` does not divide `length` the last block is shorter and filled up.

    Raises DataError where no document is long enough.
    """
    long_enough = np.flatnonzero(store.lengths >= length)[:documents]
    if not len(long_enough):
        raise DataError(
            f"{store.prefix}: no document has {length} tokens (the longest has {int(store.lengths.max(initial=0))}); "
            "give longer held-out documents under evaluation.held_out, or evaluate at a shorter length"
        )
    return [
        _block(store, int(document), start, min(context, length - start), context)
        for document in long_enough
        for start in range(0, length, context)
    ]


def _block(store: TokenStore, document: int, start: int, tokens: int, context: int) -> HeldOutRow:
    values = store.document(document, start, start + tokens)
    row = PackedRow.from_documents([values], length=context)
    return HeldOutRow(dataclasses.replace(row, doc_ids=np.array([document])), start)
