"""In which order the documents of the strata are drawn, and which are packed together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from alia_ctx.data.packing.blend import Stratum, shuffled
from alia_ctx.data.packing.history import NO_SPANS, Spans

_MIN_SEGMENT_ROWS = 32  # shorter ones leave many rows with gaps


class _Stream:
    """Documents of a stratum, pass after pass, each in an order of its own. The first
    pass has what earlier rows left of it, the others have everything.
    """

    def __init__(self, stratum: Stratum, lengths: np.ndarray, seed: int) -> None:
        self._stratum = stratum
        self._lengths = lengths
        self._seed = seed
        self._pass = stratum.passes - 1
        self._before = 0  # tokens of the passes before this one
        self._position = 0
        self._spans = NO_SPANS
        self._ends = np.empty(0, np.int64)

    def draw(self, until: int) -> Iterator[Spans]:
        """Documents from where the last draw ended until the stream has given `until`
        tokens in all, or just more.
        """
        while True:
            total = int(self._ends[-1]) if self._ends.size else 0
            stop = 0
            if until > self._before:
                least = np.searchsorted(self._ends, until - self._before, "left")
                stop = int(least) + 1
            stop = min(max(stop, self._position), self._ends.size)
            if stop > self._position:
                part = slice(self._position, stop)
                yield Spans(*(column[part] for column in self._spans))
                self._position = stop
            if self._position < self._ends.size or until <= self._before + total:
                return
            self._before += total
            self._next_pass()

    def _next_pass(self) -> None:
        self._pass += 1
        stratum = self._stratum
        order = shuffled(
            stratum.documents.size, f"pack/{self._seed}/{stratum.name}/{self._pass}"
        )
        if self._pass == stratum.passes and stratum.unseen_tokens < stratum.tokens:
            rank = np.empty_like(order)
            rank[order] = np.arange(order.size)
            places = np.searchsorted(stratum.documents, stratum.unseen.document)
            chosen = np.argsort(rank[places], kind="stable")
            self._spans = Spans(*(column[chosen] for column in stratum.unseen))
        else:
            documents = stratum.documents[order]
            zeros = np.broadcast_to(np.int64(0), documents.size)
            self._spans = Spans(documents, zeros, self._lengths[documents])
        self._ends = np.cumsum(self._spans.length, dtype=np.int64)
        self._position = 0


def segments(
    strata: list[Stratum],
    lengths: np.ndarray,
    row_length: int,
    rows: int | None,
    seed: int,
) -> Iterator[list[tuple[int, Spans]]]:
    """Documents to pack together, segment after segment: per stratum its bucket and what
    is drawn of it.

    A segment ends where a stratum has been gone through for the first time, and where
    it has been gone through once more (unless that is within 32 rows of the last end),
    so that a document and its next repetition are packed in different segments, but for
    strata of less than 32 rows, which a segment may have several passes of; and an
    unweighted plan is a row of whole epochs. `rows` bounds the tokens drawn in all;
    without it there is one epoch. Repetitions of a stratum are evenly spread over the
    plan, as its share is the same in each segment.
    """
    streams = [_Stream(stratum, lengths, seed) for stratum in strata]
    budget = (
        rows * row_length
        if rows is not None
        else sum(stratum.tokens for stratum in strata)
    )
    drawn = 0.0
    while drawn < budget:
        target = _next_boundary(strata, drawn, row_length, budget)
        yield [
            (stratum.bucket, spans)
            for stratum, stream in zip(strata, streams, strict=True)
            for spans in stream.draw(round(stratum.share * target))
        ]
        drawn = target


def _next_boundary(
    strata: list[Stratum], drawn: float, row_length: int, budget: int
) -> float:
    apart = _MIN_SEGMENT_ROWS * row_length if len(strata) > 1 else 0.5
    ends = []
    for stratum in strata:
        epoch = stratum.tokens / stratum.share
        skipped = (stratum.tokens - stratum.unseen_tokens) / stratum.share
        first_end = epoch - skipped
        least = 0.5 if drawn + 0.5 < first_end else apart
        done = (drawn + least + skipped) / epoch
        whole = int(done) + (0 if done == int(done) else 1)
        ends.append(epoch * whole - skipped)
    return min(budget, *ends)
