"""Which tokens a context-parallel rank holds, which keys it needs, and who sends them:
numpy on the host, once a row.

A row is cut in ranges of tokens that are dealt to the ranks: by default the zigzag of
`spec.layout.zigzag_chunks`, or with `Balance` finer cuts dealt by the work that this row's
documents put in them. The keys that the queries of a range [a, b) can see form one
contiguous slice of the row: from the start of the document that holds token a up to b.
A rank keeps the union of its slices in one buffer, in row order, and receives only the
parts of it that others hold.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.spec.layout import zigzag_chunks
from alia_ctx.spec.model import ModelSpec

Range = tuple[int, int]


@dataclass(frozen=True)
class Balance:
    """How far to cut a row for an even share of work on every rank.

    A zigzag is even for one document but not for several: a long document that ends
    early in the row leaves its dearest chunks to few ranks. `most_cuts` times as many
    chunks (a power of two; each costs a kernel call a layer) are dealt to the ranks,
    heaviest first; the fewest are taken that bring the busiest rank within `tolerance`
    of the mean. `pairs_per_token` is the linear layers' work on a token in units of one
    attended pair.
    """

    pairs_per_token: float
    most_cuts: int = 8
    tolerance: float = 1.02

    @classmethod
    def of(cls, model: ModelSpec) -> Balance:
        """Weights of `model`: its matrices against the 4 * query_size FLOPs of a pair,
        both forward.
        """
        matrices = model.hidden_size * (
            2 * model.query_size
            + 2 * model.key_value_size
            + 3 * model.intermediate_size
        )
        return cls(pairs_per_token=2 * matrices / (4 * model.query_size))


@dataclass(frozen=True)
class ChunkGeometry:
    """One run of queries of a rank and the keys that they may see, all ranges half-open.

    `queries` counts in the rank's own tokens, `keys` in its key buffer, `row` in the
    row. `query_offsets` and `key_offsets` (int64 [n+1], from 0) bound the n documents
    of the chunk among its queries and among its keys; they differ only in the first
    document, whose keys may begin before the chunk.
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
    """`length` tokens of keys and values from `source`'s tokens (at `source_start`) to
    `target`'s buffer.
    """

    source: int
    source_start: int
    target: int
    target_start: int
    length: int


@dataclass(frozen=True)
class RankGeometry:
    """What one rank does for one row. `positions` (int64 [t]) restart at each document.

    `ranges` are the row's tokens that the rank holds, in row order. `local` lists the
    copies from the rank's own tokens to its buffer, `sends` and `receives` the exchange
    with others, in one order on both sides. With cp=1 the buffer is the rank's own
    tokens and all three are empty.
    """

    cp: int
    rank: int
    ranges: tuple[Range, ...]
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
    """Bounds of all that attends among itself: the documents, then the fill up to
    `row_length` as one more.

    `doc_offsets` (integers [n+1]) starts at 0, rises strictly, and ends at the number
    of real tokens. DataError where it does not.
    """
    offsets = np.asarray(doc_offsets, dtype=np.int64)
    if (
        offsets.ndim != 1
        or len(offsets) < 1
        or offsets[0] != 0
        or (np.diff(offsets) <= 0).any()
    ):
        raise DataError(
            f"document offsets must rise strictly from 0, got {offsets[:8].tolist()}; "
            "build the plan again"
        )
    if offsets[-1] > row_length:
        raise DataError(
            f"documents end at {offsets[-1]}, beyond the row of {row_length} tokens; "
            "build the plan again"
        )
    return offsets if offsets[-1] == row_length else np.append(offsets, row_length)


def rank_geometry(
    doc_offsets: np.ndarray,
    row_length: int,
    cp: int,
    rank: int,
    balance: Balance | None = None,
) -> RankGeometry:
    """Geometry of `rank` of `cp` for a row; LayoutError if `row_length` is not a multiple of 2*cp.

    Every rank computes the same cuts and transfers from the same offsets, so nothing is negotiated.
    """
    offsets = attention_offsets(doc_offsets, row_length)
    held = _cut(offsets, row_length, cp, balance)
    needed = [
        _union((_document_start(offsets, start), stop) for start, stop in ranges)
        for ranges in held
    ]
    tokens = np.concatenate([np.arange(start, stop) for start, stop in held[rank]])
    return RankGeometry(
        cp=cp,
        rank=rank,
        ranges=held[rank],
        positions=tokens - offsets[np.searchsorted(offsets, tokens, side="right") - 1],
        chunks=tuple(_chunks(offsets, held[rank], needed[rank])),
        key_ranges=needed[rank],
        local=tuple(_transfers(rank, rank, held, needed)) if cp > 1 else (),
        sends=tuple(
            t
            for other in range(cp)
            if other != rank
            for t in _transfers(rank, other, held, needed)
        ),
        receives=tuple(
            t
            for other in range(cp)
            if other != rank
            for t in _transfers(other, rank, held, needed)
        ),
    )


def _cut(
    offsets: np.ndarray, row_length: int, cp: int, balance: Balance | None
) -> list[tuple[Range, ...]]:
    """Ranges of each rank, in row order."""
    zigzag = [zigzag_chunks(row_length, cp, rank) for rank in range(cp)]
    if cp == 1 or balance is None:
        return zigzag
    best, least = zigzag, np.inf
    cuts = 1
    while cuts <= balance.most_cuts and row_length % (2 * cp * cuts) == 0:
        bounds = np.linspace(0, row_length, 2 * cp * cuts + 1).astype(np.int64)
        work = np.diff(
            _pairs_before(offsets, bounds)
        ) + balance.pairs_per_token * np.diff(bounds)
        owners = _deal(work, cp)
        load = np.bincount(owners, weights=work, minlength=cp)
        if load.max() < least:
            least = load.max()
            pieces = [(int(a), int(b)) for a, b in pairwise(bounds)]
            best = [
                _union(pieces[c] for c in np.flatnonzero(owners == rank))
                for rank in range(cp)
            ]
        if least <= balance.tolerance * load.mean():
            break
        cuts *= 2
    return best


def _pairs_before(offsets: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Attended pairs whose query comes before each of `tokens`."""
    lengths = np.diff(offsets)
    whole = np.concatenate([[0], np.cumsum(lengths * (lengths + 1) // 2)])
    document = np.minimum(
        np.searchsorted(offsets, tokens, side="right") - 1, len(lengths)
    )
    inside = tokens - offsets[document]
    pairs: np.ndarray = whole[document] + inside * (inside + 1) // 2
    return pairs


def _deal(work: np.ndarray, cp: int) -> np.ndarray:
    """Owner of each chunk: heaviest first to the least loaded rank, each taking equally many.

    For one document and 2*cp chunks this is the zigzag.
    """
    owners = np.empty(len(work), dtype=np.int64)
    ranks = [(0.0, rank, len(work) // cp) for rank in range(cp)]
    for chunk in np.argsort(-work, kind="stable"):
        load, rank, room = heapq.heappop(ranks)
        owners[chunk] = rank
        if room > 1:
            heapq.heappush(ranks, (load + float(work[chunk]), rank, room - 1))
    return owners


def _document_start(offsets: np.ndarray, token: int) -> int:
    return int(offsets[np.searchsorted(offsets, token, side="right") - 1])


def _union(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Union of ranges given by rising start and stop."""
    merged: list[Range] = []
    for start, stop in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _chunks(
    offsets: np.ndarray, held: tuple[Range, ...], needed: tuple[Range, ...]
) -> Iterator[ChunkGeometry]:
    before = 0
    for start, stop in held:
        first = np.searchsorted(offsets, start, side="right") - 1
        bounds = offsets[first : np.searchsorted(offsets, stop, side="left") + 1]
        key_start = _in_buffer(needed, int(bounds[0]))
        yield ChunkGeometry(
            row=(start, stop),
            queries=(before, before + stop - start),
            keys=(key_start, key_start + stop - int(bounds[0])),
            query_offsets=np.clip(bounds, start, stop) - start,
            key_offsets=np.minimum(bounds, stop) - bounds[0],
        )
        before += stop - start


def _in_buffer(ranges: tuple[Range, ...], token: int) -> int:
    """Place in a buffer that holds `ranges` one after another of a row token that it holds."""
    before = 0
    for start, stop in ranges:
        if token < stop:
            return before + token - start
        before += stop - start
    raise IndexError(f"token {token} is in none of {ranges}")


def _transfers(
    source: int,
    target: int,
    held: list[tuple[Range, ...]],
    needed: list[tuple[Range, ...]],
) -> Iterator[Transfer]:
    """All that `target` needs of what `source` holds, in row order."""
    for start, stop in held[source]:
        for key_start, key_stop in needed[target]:
            low, high = max(start, key_start), min(stop, key_stop)
            if low < high:
                places = _in_buffer(held[source], low), _in_buffer(needed[target], low)
                yield Transfer(source, places[0], target, places[1], high - low)
