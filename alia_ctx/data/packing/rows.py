"""From strata to rows: draw documents, pack them segment by segment, put the rows in
training order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alia_ctx.data.packing.blend import Corpus, Stratum, shuffled
from alia_ctx.data.packing.history import Spans, join_spans
from alia_ctx.data.packing.plan_files import PackedRows
from alia_ctx.data.packing.policies import POLICIES, Pieces
from alia_ctx.data.packing.segments import segments
from alia_ctx.data.packing.spec import PackSpec

Progress = Callable[[str, float], None]


def pack_rows(
    corpus: Corpus,
    strata: list[Stratum],
    spec: PackSpec,
    row_length: int,
    n_rows: int | None,
    seed: int,
    segments_before: int,
    report: Progress,
) -> tuple[PackedRows, int]:
    """`n_rows` rows (None: one epoch), without what they predict, and how many segments
    made them.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    rows = 0
    for number, drawn in enumerate(
        segments(strata, corpus.lengths, row_length, n_rows, seed), segments_before
    ):
        if n_rows is not None and rows >= n_rows:
            break
        pieces = _pack_segment(drawn, spec, row_length, f"concat/{seed}/{number}")
        counts, order = _order_rows(
            pieces, f"rows/{seed}/{number}", None if n_rows is None else n_rows - rows
        )
        rows += counts.size
        parts.append((
            counts,
            pieces.document[order],
            pieces.start[order].astype(np.uint32),
            pieces.length[order],
        ))  # fmt: skip
        report(
            f"{rows} rows packed",
            0.05 + 0.85 * (min(1.0, rows / n_rows) if n_rows else 1.0),
        )
    counts, documents, starts, lengths = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    offsets = np.concatenate(([0], np.cumsum(counts)))
    pairs = _pairs(offsets, lengths, row_length)
    unknown = np.empty(0, np.int64)
    packed = PackedRows(offsets, pairs, unknown, documents, starts, lengths)
    return packed, len(parts)


def _pack_segment(
    drawn: list[tuple[int, Spans]], spec: PackSpec, row_length: int, purpose: str
) -> Pieces:
    policy = POLICIES[spec.policy]
    groups = (
        sorted({bucket for bucket, _ in drawn})
        if spec.short_docs == "apart"
        else [None]
    )
    packed: list[Pieces] = []
    bins = 0
    for group in groups:
        spans = join_spans(
            [part for bucket, part in drawn if group is None or bucket == group]
        )
        if policy.keeps_order and len(drawn) > 1:
            # strata come one after another: mix them
            mixed = shuffled(spans.document.size, f"{purpose}/{bins}")
            spans = Spans(*(column[mixed] for column in spans))
        if spans.start.any():
            # parts of documents: packed like documents, then numbered as what they are
            numbers = np.arange(spans.document.size)
            pieces = policy.pack(numbers, spans.length, row_length)
            pieces = pieces._replace(
                document=spans.document[pieces.document],
                start=pieces.start + spans.start[pieces.document],
            )
        else:
            pieces = policy.pack(spans.document, spans.length, row_length)
        packed.append(pieces._replace(bin=pieces.bin + bins))
        bins += pieces.bins
    if len(packed) == 1:
        return packed[0]
    return Pieces(*(np.concatenate(arrays) for arrays in zip(*packed, strict=True)))


def _order_rows(
    pieces: Pieces, purpose: str, most: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle the rows of a segment and keep at most `most`; returns pieces per row, and
    the order of the pieces.

    Where rows must go, the emptiest goes first (it is the remainder of the packing),
    the others by chance, so that the lengths that are trained on stay those of the
    data.
    """
    counts = np.bincount(pieces.bin)
    order = shuffled(counts.size, purpose)
    if most is not None and counts.size > most:
        fill = np.add.reduceat(
            pieces.length, np.cumsum(counts) - counts, dtype=np.int64
        )
        order = order[order != np.argmin(fill)][:most]
    firsts = (np.cumsum(counts) - counts)[order]
    kept = counts[order]
    index = np.repeat(firsts - (np.cumsum(kept) - kept), kept)
    index += np.arange(index.size)
    return kept, index


def _pairs(offsets: np.ndarray, lengths: np.ndarray, row_length: int) -> np.ndarray:
    sizes = lengths.astype(np.int64)
    padding = row_length - np.add.reduceat(sizes, offsets[:-1])
    sizes *= sizes + 1
    sizes //= 2
    pairs: np.ndarray = np.add.reduceat(sizes, offsets[:-1])
    pairs += padding * (padding + 1) // 2
    return pairs


def joined_rows(first: PackedRows, second: PackedRows) -> PackedRows:
    """The rows of `first`, then those of `second`."""
    offsets = second.row_offsets[1:] + first.row_offsets[-1]
    joined = {
        name: np.concatenate((values, getattr(second, name)))
        for name, values in vars(first).items()
        if name != "row_offsets"
    }
    return PackedRows(
        row_offsets=np.concatenate((first.row_offsets, offsets)), **joined
    )
