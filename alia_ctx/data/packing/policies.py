"""Packing policies on arrays: documents in, pieces of rows out. No Python per document.

`POLICIES`, at the end, is the one list of them: a new policy is one entry there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
    """Pieces of documents in bins (rows that have no place in the training order yet),
    sorted by bin.

    document: int64 [n]; start: int64 [n], in the document; length: int32 [n]; bin:
        int64 [n], from 0 without gaps.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    bin: np.ndarray

    @property
    def bins(self) -> int:
        return int(self.bin[-1]) + 1 if self.bin.size else 0


def concat(documents: np.ndarray, lengths: np.ndarray, row_length: int) -> Pieces:
    """Documents one after another in the given order, cut at every row end; only the last
    row may be short.

    documents: int64 [n] numbers; lengths: [n] tokens of each, at least 1.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    if not ends.size:
        return _no_pieces()
    total = int(ends[-1])
    edges = np.union1d(ends, np.arange(row_length, total, row_length))
    starts = np.concatenate(([0], edges[:-1]))
    owner = np.searchsorted(ends, starts, "right")
    begins = ends - lengths
    sizes = (edges - starts).astype(np.int32)
    return Pieces(documents[owner], starts - begins[owner], sizes, starts // row_length)


def best_fit(documents: np.ndarray, lengths: np.ndarray, row_length: int) -> Pieces:
    """Best-fit decreasing: each document, longest first, goes to the fullest row that
    still holds it.

    Documents longer than a row are cut in whole rows and a remainder that is packed
    like a short document; no other is cut. Among documents of equal length the given
    order decides. Arguments as for `concat`.
    """
    document, start, length = cut_long(documents, lengths, row_length)
    if not document.size:
        return _no_pieces()
    # Unique keys (length, then order) make the order exact with the quickest sort there is.
    keys = (row_length - length.astype(np.uint64)) << np.uint64(40) | np.arange(
        length.size, dtype=np.uint64
    )
    keys.sort()
    order = (keys & np.uint64((1 << 40) - 1)).astype(np.int64)
    del keys
    moves = _place_by_length(np.bincount(length, minlength=row_length + 1), row_length)
    bins = moves.expand()
    by_bin = _stable_order(bins)
    order = order[by_bin]
    return Pieces(document[order], start[order], length[order], bins[by_bin])


def _no_pieces() -> Pieces:
    empty = np.empty(0, np.int64)
    return Pieces(empty, empty, empty.astype(np.int32), empty)


def _stable_order(keys: np.ndarray) -> np.ndarray:
    """Stable argsort of non-negative int64 below 2^31 [n < 2^32]:

    numpy's stable sort is several times slower.
    """
    combined = keys.astype(np.uint64) << np.uint64(32) | np.arange(
        keys.size, dtype=np.uint64
    )
    combined.sort()
    return (combined & np.uint64(0xFFFFFFFF)).astype(np.int64)


def cut_long(
    documents: np.ndarray, lengths: np.ndarray, row_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document, start, length) of whole documents, and of the parts of those that are
    longer than a row: whole rows and a remainder.
    """
    long = lengths > row_length
    if not long.any():
        return documents, np.zeros(documents.size, np.int64), lengths.astype(np.int32)
    counts = -(-lengths[long].astype(np.int64) // row_length)
    owner = np.repeat(np.arange(counts.size), counts)
    part = np.arange(owner.size) - (np.cumsum(counts) - counts)[owner]
    start = part * row_length
    length = np.minimum(lengths[long][owner] - start, row_length)
    short = ~long
    return (
        np.concatenate((documents[long][owner], documents[short])),
        np.concatenate((start, np.zeros(int(short.sum()), np.int64))),
        np.concatenate((length, lengths[short])).astype(np.int32),
    )


@dataclass
class _Moves:
    """Placements in order of falling length:

    move i puts `per_bin[i]` items in each of bins first[i] .. +bins[i].
    """

    first: list[int]
    bins: list[int]
    per_bin: list[int]

    def expand(self) -> np.ndarray:
        """Bin of every item, in the order of the moves; int64."""
        first, bins, per_bin = (
            np.array(each, np.int64) for each in (self.first, self.bins, self.per_bin)
        )
        items = bins * per_bin
        out = np.arange(int(items.sum()))
        out -= np.repeat(np.cumsum(items) - items, items)
        out //= np.repeat(per_bin, items)
        out += np.repeat(first, items)
        return out


def _place_by_length(histogram: np.ndarray, row_length: int) -> _Moves:
    """Best-fit decreasing on a histogram of lengths, exactly as if done item by item.

    Items of one length L go to the open bins with the least room >= L. Such a bin stays
    the best fit until its room is below L, so it takes room // L of them at once, and
    so does each bin of equal room: one move serves a run of bins. After it a bin's room
    is room mod L, less than half of before, so a run moves at most log2(row) times.
    """
    moves = _Moves([], [], [])
    rooms = _Rooms(row_length)
    opened = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            room = rooms.least(length)
            if room is None:
                count = -(-left // (row_length // length))
                rooms.open(opened, count, row_length)
                opened += count
                room = row_length
            left -= rooms.fill(room, length, left, moves)
    return moves


class _Rooms:
    """Open bins by the room left in them:

    runs (first bin, count) per room, and a two-level bitmap of rooms in use.
    """

    _WORD = 512

    def __init__(self, row_length: int) -> None:
        self._runs: dict[int, list[tuple[int, int]]] = {}
        self._words = [0] * (row_length // self._WORD + 1)
        self._summary = 0

    def open(self, first: int, count: int, room: int) -> None:
        """Add `count` bins with this much room each."""
        if not count or not room:
            return
        runs = self._runs.setdefault(room, [])
        if not runs:
            word, bit = divmod(room, self._WORD)
            self._words[word] |= 1 << bit
            self._summary |= 1 << word
        runs.append((first, count))

    def least(self, length: int) -> int | None:
        """The least room >= length that some bin has."""
        word, bit = divmod(length, self._WORD)
        found = self._words[word] >> bit
        if found:
            return length + (found & -found).bit_length() - 1
        words = self._summary >> (word + 1)
        if not words:
            return None
        word += (words & -words).bit_length()
        found = self._words[word]
        return word * self._WORD + (found & -found).bit_length() - 1

    def fill(self, room: int, length: int, left: int, moves: _Moves) -> int:
        """Put up to `left` items in the bins with this room, as many as fit in each;

        returns how many were put.
        """
        per_bin = room // length
        runs = self._runs[room]
        placed = 0
        while runs and placed < left:
            first, count = runs.pop()
            take = min(count, (left - placed) // per_bin)
            if take:
                self._move(first, take, per_bin, room - per_bin * length, moves)
                placed += take * per_bin
            rest = left - placed
            if (
                take < count and rest
            ):  # less than a bin's worth is left: one more bin takes it
                self._move(first + take, 1, rest, room - rest * length, moves)
                placed += rest
                take += 1
            if take < count:
                runs.append((first + take, count - take))
        if not runs:
            word, bit = divmod(room, self._WORD)
            self._words[word] &= ~(1 << bit)
            if not self._words[word]:
                self._summary &= ~(1 << word)
        return placed

    def _move(
        self, first: int, count: int, per_bin: int, room: int, moves: _Moves
    ) -> None:
        moves.first.append(first)
        moves.bins.append(count)
        moves.per_bin.append(per_bin)
        self.open(first, count, room)


@dataclass(frozen=True)
class Policy:
    """A way to pack documents in rows.

    pack: (documents int64 [n] numbers, lengths [n] tokens, row_length) -> Pieces.
    keeps_order: whether rows follow the order of the documents given, so that documents
        of several strata must be mixed before.
    summary: what it does, in words, for messages and docs.
    """

    pack: Callable[[np.ndarray, np.ndarray, int], Pieces]
    keeps_order: bool
    summary: str


POLICIES: dict[str, Policy] = {
    "concat": Policy(
        concat,
        keeps_order=True,
        summary="documents one after another, cut at every row end",
    ),
    "best_fit": Policy(
        best_fit,
        keeps_order=False,
        summary="best-fit decreasing; only documents longer than a row are cut",
    ),
}
