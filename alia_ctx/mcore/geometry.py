"""Which tokens a context-parallel rank holds, which keys it needs, and who sends them: numpy on the host, once a row.

A row is cut in 2*cp chunks and rank r holds chunks r and 2*cp-1-r (`layout.zigzag_chunks`). The keys that the
queries of a chunk [a, b) can see form one contiguous slice of the row: from the start of the document that holds
token a up to b. A rank keeps the union of its two slices in one buffer, in row order, and receives only the parts
of it that others hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.layout import zigzag_chunks

Range = tuple[int, int]


@dataclass(frozen=True)
class ChunkGeometry:
    """One run of queries of a rank and the keys that they may see, all ranges half-open.

    `queries` counts in the rank's own tokens, `keys` in its key buffer, `row` in the row. `query_offsets` and
    `key_offsets` (int64 [n+1], from 0) bound the n documents of the chunk among its queries and among its keys;
    they differ only in the first document, whose keys may begin before the chunk.
    """

    row: Range
    queries: Range
    keys: Range
    query_offsets: np.ndarray
    key_offsets: np.ndarray

    def attended_pairs(self) -> int:
        """(query, key) pairs that the mask lets through."""
        queries, keys = np.diff(self.query_offsets), np.diff(self.key_offsets)
        return int((queries * keys - queries * (queries - 1) // 2).sum())


@dataclass(frozen=True)
class Transfer:
    """`length` tokens of keys and values from `source`'s tokens (at `source_start`) to `target`'s buffer."""

    source: int
    source_start: int
    target: int
    target_start: int
    length: int


@dataclass(frozen=True)
class RankGeometry:
    """What one rank does for one row. `positions` (int64 [t]) restart at each document.

    `local` lists the copies from the rank's own tokens to its buffer, `sends` and `receives` the exchange with
    others, in one order on both sides. With cp=1 the buffer is the rank's own tokens and all three are empty.
    """

    cp: int
    rank: int
    positions: np.ndarray
    chunks: tuple[ChunkGeometry, ...]
    key_ranges: tuple[Range, ...]
    local: tuple[Transfer, ...]
    sends: tuple[Transfer, ...]
    receives: tuple[Transfer, ...]

    @property
    def tokens(self) -> int:
        return len(self.positions)

    @property
    def buffer_tokens(self) -> int:
        return sum(stop - start for start, stop in self.key_ranges)


def attention_offsets(doc_offsets: np.ndarray, row_length: int) -> np.ndarray:
    """Bounds of all that attends among itself: the documents, then the fill up to `row_length` as one more.

    `doc_offsets` (integers [n+1]) starts at 0, rises strictly, and ends at the number of real tokens. DataError
    where it does not.
    """
    offsets = np.asarray(doc_offsets, dtype=np.int64)
    if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or (np.diff(offsets) <= 0).any():
        raise DataError(f"document offsets must rise strictly from 0, got {offsets[:8].tolist()}; build the plan again")
    if offsets[-1] > row_length:
        raise DataError(f"documents end at {offsets[-1]}, beyond the row of {row_length} tokens; build the plan again")
    return offsets if offsets[-1] == row_length else np.append(offsets, row_length)


def rank_geometry(doc_offsets: np.ndarray, row_length: int, cp: int, rank: int) -> RankGeometry:
    """Geometry of `rank` of `cp` for a row; LayoutError if `row_length` is not a multiple of 2*cp.

    Every rank computes the same transfers from the same offsets, so nothing is negotiated.
    """
    offsets = attention_offsets(doc_offsets, row_length)
    ranges = [_key_ranges(offsets, row_length, cp, other) for other in range(cp)]
    transfers = [] if cp == 1 else _transfers(ranges, row_length, cp)
    return RankGeometry(
        cp=cp,
        rank=rank,
        positions=_positions(offsets, row_length, cp, rank),
        chunks=_chunks(offsets, ranges[rank], row_length, cp, rank),
        key_ranges=ranges[rank],
        local=tuple(t for t in transfers if t.source == rank == t.target),
        sends=tuple(t for t in transfers if t.source == rank != t.target),
        receives=tuple(t for t in transfers if t.target == rank != t.source),
    )


def rank_tokens(row_length: int, cp: int, rank: int) -> np.ndarray:
    """Row indices (int64) of the tokens that `rank` holds, in the order in which it holds them."""
    return np.concatenate([np.arange(start, stop) for start, stop in zigzag_chunks(row_length, cp, rank)])


def _document_start(offsets: np.ndarray, token: int) -> int:
    return int(offsets[np.searchsorted(offsets, token, side="right") - 1])


def _key_ranges(offsets: np.ndarray, row_length: int, cp: int, rank: int) -> tuple[Range, ...]:
    """Union, in row order, of the key slices of the rank's chunks."""
    slices = [(_document_start(offsets, start), stop) for start, stop in zigzag_chunks(row_length, cp, rank)]
    if len(slices) == 2 and slices[1][0] <= slices[0][1]:
        return ((slices[0][0], slices[1][1]),)
    return tuple(slices)


def _positions(offsets: np.ndarray, row_length: int, cp: int, rank: int) -> np.ndarray:
    tokens = rank_tokens(row_length, cp, rank)
    return tokens - offsets[np.searchsorted(offsets, tokens, side="right") - 1]


def _chunks(
    offsets: np.ndarray, key_ranges: tuple[Range, ...], row_length: int, cp: int, rank: int
) -> tuple[ChunkGeometry, ...]:
    found, held = [], 0
    for start, stop in zigzag_chunks(row_length, cp, rank):
        first = np.searchsorted(offsets, start, side="right") - 1
        bounds = offsets[first : np.searchsorted(offsets, stop, side="left") + 1]
        key_start = _in_buffer(key_ranges, int(bounds[0]))
        found.append(
            ChunkGeometry(
                row=(start, stop),
                queries=(held, held + stop - start),
                keys=(key_start, key_start + stop - int(bounds[0])),
                query_offsets=np.clip(bounds, start, stop) - start,
                key_offsets=np.minimum(bounds, stop) - bounds[0],
            )
        )
        held += stop - start
    return tuple(found)


def _in_buffer(key_ranges: tuple[Range, ...], token: int) -> int:
    """Place in the buffer of a row token that the buffer holds."""
    before = 0
    for start, stop in key_ranges:
        if token < stop:
            return before + token - start
        before += stop - start
    raise IndexError(f"token {token} is in none of {key_ranges}")


def _transfers(ranges: list[tuple[Range, ...]], row_length: int, cp: int) -> list[Transfer]:
    found = []
    for source in range(cp):
        held = 0
        for start, stop in zigzag_chunks(row_length, cp, source):
            for target, key_ranges in enumerate(ranges):
                for key_start, key_stop in key_ranges:
                    low, high = max(start, key_start), min(stop, key_stop)
                    if low < high:
                        place = _in_buffer(key_ranges, low)
                        found.append(Transfer(source, held + low - start, target, place, high - low))
            held += stop - start
    return found
