"""Held-out documents as rows (packed sequences): every model sees the same tokens, in
blocks of the context it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from alia_ctx.data.packing import PackedRow
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError
from alia_ctx.evaluation.evaluator import RowPieces
from alia_ctx.files import checksum


class Documents(Protocol):
    """Held-out text as token ids: documents by number, each of one of the `sources`."""

    @property
    def where(self) -> str:
        """Where the text is from, as messages name it."""
        ...

    @property
    def fingerprint(self) -> str: ...
    @property
    def lengths(self) -> NDArray[np.integer]:
        """Tokens of each document."""
        ...

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, by number; () where there is one."""
        ...

    def sources_of(self, documents: Sequence[int]) -> list[int]: ...
    def document(self, number: int, start: int, stop: int) -> NDArray[np.integer]: ...
    def beginnings(self, tokens: int) -> Iterator[NDArray[np.integer]]:
        """The first `tokens` tokens of each document, the short ones too, in the order of
        the text; as many documents as have `tokens` together at least.
        """
        ...


class StoredText:
    """The documents of a token store; `sources` names those that they are from, and
    `source_of` [documents] has their numbers.
    """

    def __init__(
        self,
        store: TokenStore,
        sources: Sequence[str] = (),
        source_of: NDArray[np.integer] | None = None,
    ) -> None:
        self._store, self._source_of = store, source_of
        self.sources = tuple(sources)
        self.where = str(store.prefix)
        self.lengths: NDArray[np.integer] = store.lengths

    @property
    def fingerprint(self) -> str:
        return self._store.fingerprint

    def sources_of(self, documents: Sequence[int]) -> list[int]:
        if self._source_of is None:
            return [0] * len(documents)
        return [int(self._source_of[d]) for d in documents]

    def document(self, number: int, start: int, stop: int) -> NDArray[np.integer]:
        return self._store.document(number, start, stop)

    def beginnings(self, tokens: int) -> Iterator[NDArray[np.integer]]:
        for number in range(len(self.lengths)):
            yield self.document(number, 0, min(tokens, int(self.lengths[number])))


@dataclass(frozen=True)
class Pieces:
    """`RowPieces` of a row of T tokens: documents by number, and the sources they are of."""

    length: int
    doc_offsets: NDArray[np.int64]
    doc_ids: NDArray[np.int64]
    sources: NDArray[np.int32]


@dataclass(frozen=True)
class HeldOutRow:
    """A row of blocks of documents; `position_offsets` says where each begins in its
    document, `sources` which source each is of (default: the first).
    """

    row: PackedRow
    position_offsets: tuple[int, ...]
    sources: tuple[int, ...] = ()

    @property
    def pieces(self) -> RowPieces:
        """The row as evaluators read it."""
        row = self.row
        sources = self.sources or [0] * len(row.doc_ids)
        return Pieces(
            row.length, row.doc_offsets, row.doc_ids, np.array(sources, np.int32)
        )


Span = tuple[int, int, int]  # document, first token, end


class SpanRows(Sequence[HeldOutRow]):
    """Rows of `row_length` tokens made of parts of documents, `together` to a row; each
    is made when it is asked for. `bos` takes the place of the first token of each part
    that begins in the midst of a document, and predicts nothing there.
    """

    def __init__(
        self,
        text: Documents,
        spans: Sequence[Span],
        row_length: int,
        together: int,
        bos: int | None = None,
    ) -> None:
        self._text, self._spans, self._bos = text, spans, bos
        self._row_length, self._together = row_length, max(1, together)

    def __len__(self) -> int:
        return -(-len(self._spans) // self._together)

    @overload
    def __getitem__(self, index: int) -> HeldOutRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[HeldOutRow]: ...
    def __getitem__(self, index: int | slice) -> HeldOutRow | list[HeldOutRow]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [self._row(number) for number in numbers]
        return self._row(numbers)

    def _row(self, number_of_row: int) -> HeldOutRow:
        first = number_of_row * self._together
        spans = self._spans[first : first + self._together]
        pieces = [self._text.document(*span) for span in spans]
        weights = None
        if self._bos is not None:
            weights = [np.ones(len(piece), np.uint8) for piece in pieces]
            for number, (_, start, _) in enumerate(spans):
                if start:
                    pieces[number] = np.array(pieces[number])
                    pieces[number][0], weights[number][1:2] = self._bos, 0
        numbers = np.array([document for document, _, _ in spans], np.int64)
        row = PackedRow.from_documents(
            pieces, length=self._row_length, index=number_of_row, weights=weights
        )
        return HeldOutRow(
            dataclasses.replace(row, doc_ids=numbers),
            tuple(start for _, start, _ in spans),
            tuple(self._text.sources_of(numbers.tolist())),
        )


def longest_measurable(text: Documents, contexts: Sequence[int]) -> int | None:
    """The longest of `contexts` that a document of `text` fills; None where none does."""
    longest = int(text.lengths.max(initial=0))
    return max((context for context in contexts if context <= longest), default=None)


def long_documents(text: Documents, length: int, documents: int) -> list[int]:
    """Numbers of the first `documents` documents that have `length` tokens, of each
    source as many as of any other while it has some; of those whose `length` tokens are
    equal the first alone, as they are one draw.

    DataError where there is none.
    """
    return _chosen(text, length, documents)[0]


def copies_left_out(text: Documents, length: int, documents: int) -> int:
    """How many documents `long_documents` passed over as equal to one that it took."""
    return _chosen(text, length, documents)[1]


def _chosen(text: Documents, length: int, documents: int) -> tuple[list[int], int]:
    long_enough = np.flatnonzero(text.lengths >= length)
    sources = np.asarray(text.sources_of(long_enough.tolist()), np.int64)
    turns = np.empty(len(long_enough), np.int64)  # the how many-th of its source
    for source in np.unique(sources):
        own = np.flatnonzero(sources == source)
        turns[own] = np.arange(len(own))
    chosen: dict[str, int] = {}
    copies = 0
    for number in long_enough[np.lexsort((sources, turns))].tolist():
        if len(chosen) == documents:
            break
        tokens = np.asarray(text.document(number, 0, length), np.int64)
        copies += chosen.setdefault(checksum(tokens.tobytes()), number) != number
    if not chosen:
        raise DataError(
            f"{text.where}: no document has {length} tokens (the longest has "
            f"{int(text.lengths.max(initial=0))}); "
            "give longer held-out documents under evaluation.held_out or --text, or "
            "evaluate at a shorter context"
        )
    return sorted(chosen.values()), copies


def held_out_rows(
    text: Documents,
    *,
    context: int,
    length: int,
    documents: int,
    row_length: int | None = None,
    bos: int | None = None,
) -> SpanRows:
    """The first `length` tokens of the first `documents` documents that have as many, in
    blocks of `context`.

    A block is a document of its own to the model: it sees nothing before the block. So
    with `context` below `length` this measures a model that is limited to its own
    context, at the very tokens that a longer context would see more of. Rows have
    `row_length` tokens (default: one block); as many blocks share a row as fit, the
    rest of it is fill. Raises DataError where no document is long enough.

    `bos`: what documents begin with, and so each block (see `begins_with`). It stands
    where the last token of the block before does, and neither predicts what follows: it
    would be the beginning of a document to the one, and is no place of the other.
    """
    row_length = row_length or context
    last, step = (length, context) if bos is None else (length - 1, context - 1)
    spans = [
        (document, start, min(start + context, length))
        for document in long_documents(text, length, documents)
        for start in range(0, last, step)
    ]
    return SpanRows(text, spans, row_length, row_length // context, bos)


def begins_with(text: Documents, token: int, *, length: int, documents: int) -> bool:
    """Whether all the documents that are measured begin with a token, which is then that
    of a text's beginning and not of one text.
    """
    return all(
        int(text.document(number, 0, 1)[0]) == token
        for number in long_documents(text, length, documents)
    )
