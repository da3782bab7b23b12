"""Which documents are trained on, in which order and how often: blend by source and
length, epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIN_SEGMENT_ROWS = 32
_FIT_ROUNDS = 1000


def shuffled(count: int, purpose: str) -> np.ndarray:
    """A permutation of range(count), int64, that `purpose` alone decides: on any machine,
    with any numpy.

    Sorts SplitMix64 hashes (Steele, Lea, Flood 2014) of the numbers; that function is a
    bijection, so no two are equal.
    """
    return np.argsort(_hashes(count, purpose))


def _hashes(count: int, purpose: str) -> np.ndarray:
    x = np.arange(count, dtype=np.uint64)
    x += np.uint64(xxhash.xxh3_64_intdigest(purpose.encode()))
    x *= _GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


@dataclass(frozen=True)
class Corpus:
    """All documents of all sources under one numbering, and which of them may be used.

    names: sources in order; base: int64 [sources + 1], first number of each; lengths:
        tokens of each document.
    usable: int64, numbers of the documents to pack; dropped: per source, documents and
        tokens left out and why.
    """

    names: tuple[str, ...]
    base: np.ndarray
    lengths: np.ndarray
    usable: np.ndarray
    dropped: dict[str, dict[str, int]]

    def source_of(self, documents: np.ndarray) -> np.ndarray:
        """Index of the source of each document number; int32."""
        return (np.searchsorted(self.base, documents, "right") - 1).astype(np.int32)


def gather_corpus(
    stores: Mapping[str, TokenStore], spec: PackSpec, row_length: int
) -> Corpus:
    """Number all documents and drop what cannot be used; DataError where nothing is left."""
    names = tuple(stores)
    base = np.concatenate(
        ([0], np.cumsum([stores[name].n_documents for name in names]))
    )
    lengths = np.concatenate([stores[name].lengths for name in names])
    usable: list[np.ndarray] = []
    dropped = {}
    for name, first in zip(names, base[:-1].tolist(), strict=True):
        own = stores[name].lengths
        tiny = own < 2
        long = own > row_length if spec.long_docs == "drop" else np.zeros_like(tiny)
        usable.append(np.flatnonzero(~(tiny | long)) + first)
        dropped[name] = {
            "short_documents": int(tiny.sum()),
            "short_tokens": int(own[tiny].sum(dtype=np.int64)),
            "long_documents": int(long.sum()),
            "long_tokens": int(own[long].sum(dtype=np.int64)),
        }
    corpus = Corpus(names, base, lengths, np.concatenate(usable), dropped)
    if not corpus.usable.size:
        raise DataError(
            f"sources {', '.join(names)}: no documents are left to pack (left out: "
            f"{dropped})"
        )
    return corpus


@dataclass(frozen=True)
class Stratum:
    """Documents that are drawn together:

    a source, a length bucket, both, or everything; `share` of the tokens.
    """

    name: str
    documents: np.ndarray
    tokens: int
    share: float
    bucket: int


def stratify(corpus: Corpus, spec: PackSpec) -> list[Stratum]:
    """Split the usable documents by what the spec weighs, and give each part its share
    of the tokens.

    With weights and length buckets both, the shares are those nearest to the data that
    meet both margins (iterative proportional fitting); DataError where no shares do.
    """
    sources = (
        corpus.source_of(corpus.usable)
        if spec.weights
        else np.zeros(corpus.usable.size, np.int32)
    )
    names = corpus.names if spec.weights else ("",)
    bounds = [bucket.min_tokens for bucket in spec.length_buckets]
    lengths = corpus.lengths[corpus.usable]
    buckets = (
        np.searchsorted(bounds, lengths, "right")
        if bounds
        else np.zeros(corpus.usable.size, np.int64)
    )
    labels = ["" if not bounds else f"{low}+ tokens" for low in [0, *bounds]]
    cell = sources * (len(bounds) + 1) + buckets
    tokens = np.bincount(
        cell, weights=lengths, minlength=len(names) * len(labels)
    ).reshape(len(names), len(labels))
    shares = _fit_shares(tokens, names, labels, spec)
    return [
        Stratum(
            " ".join(filter(None, (names[row], labels[column]))) or "all",
            corpus.usable[cell == row * len(labels) + column],
            int(tokens[row, column]),
            float(shares[row, column]),
            column,
        )
        for row, column in zip(*np.nonzero(shares), strict=True)
    ]


def _fit_shares(
    tokens: np.ndarray, names: tuple[str, ...], labels: list[str], spec: PackSpec
) -> np.ndarray:
    rows = np.array([spec.weights[name] for name in names]) if spec.weights else None
    columns = None
    if spec.length_buckets:
        shares = [bucket.share for bucket in spec.length_buckets]
        columns = np.array([max(0.0, 1 - sum(shares)), *shares])
    fitted = tokens / tokens.sum()
    for _ in range(_FIT_ROUNDS if rows is not None and columns is not None else 1):
        if rows is not None:
            fitted = fitted * _ratio(rows, fitted.sum(1))[:, None]
        if columns is not None:
            fitted = fitted * _ratio(columns, fitted.sum(0))
        if _misfit(fitted, rows, columns) < 1e-9:
            break
    if _misfit(fitted, rows, columns) > 1e-3:
        short = [
            name for name, share in zip(names, tokens.sum(1), strict=True) if not share
        ]
        short += [
            label
            for label, share in zip(labels, tokens.sum(0), strict=True)
            if not share
        ]
        detail = (
            f"nothing is there for {', '.join(short)}"
            if short
            else "sources and lengths contradict each other"
        )
        raise DataError(
            f"no blend of the documents meets weights={spec.weights or 'by size'} and "
            "length_buckets="
            f"{[(bucket.min_tokens, bucket.share) for bucket in spec.length_buckets]}: "
            f"{detail}; change the shares"
        )
    blend: np.ndarray = fitted / fitted.sum()
    return blend


def _ratio(wanted: np.ndarray, have: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.zeros_like(have)
    np.divide(wanted, have, out=ratio, where=have > 0)
    return ratio


def _misfit(
    fitted: np.ndarray, rows: np.ndarray | None, columns: np.ndarray | None
) -> float:
    worst = 0.0
    for wanted, axis in ((rows, 1), (columns, 0)):
        if wanted is not None:
            worst = max(worst, float(np.abs(fitted.sum(axis) - wanted).max()))
    return worst


class _Stream:
    """Documents of a stratum, epoch after epoch, each in an order of its own."""

    def __init__(self, stratum: Stratum, lengths: np.ndarray, seed: int) -> None:
        self._stratum = stratum
        self._lengths = lengths
        self._seed = seed
        self._epoch = -1
        self._position = 0
        self._order = np.empty(0, np.int64)
        self._ends = np.empty(0, np.int64)

    def draw(self, until: int) -> Iterator[np.ndarray]:
        """Documents from where the last draw ended until the stream has given `until`
        tokens in all, or just more.
        """
        while True:
            whole = (
                self._epoch * self._stratum.tokens
            )  # tokens of the epochs before this one
            stop = (
                int(np.searchsorted(self._ends, until - whole, "left")) + 1
                if until > whole
                else 0
            )
            stop = min(max(stop, self._position), self._order.size)
            if stop > self._position:
                yield self._order[self._position : stop]
                self._position = stop
            if self._position < self._order.size or until <= whole + (
                self._stratum.tokens if self._order.size else 0
            ):
                return
            self._next_epoch()

    def _next_epoch(self) -> None:
        self._epoch += 1
        order = shuffled(
            self._stratum.documents.size,
            f"pack/{self._seed}/{self._stratum.name}/{self._epoch}",
        )
        self._order = self._stratum.documents[order]
        self._ends = np.cumsum(self._lengths[self._order], dtype=np.int64)
        self._position = 0


def segments(
    strata: list[Stratum],
    lengths: np.ndarray,
    row_length: int,
    rows: int | None,
    seed: int,
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Documents to pack together, segment after segment: per stratum its bucket and the
    documents drawn, int64.

    A segment ends where a stratum has been gone through once more (unless that is
    within 32 rows of the last end), so that a document and its next repetition are
    packed in different segments, and an unweighted plan is a row of whole epochs.
    `rows` bounds the tokens drawn in all; without it there is one epoch. Repetitions of
    a stratum are evenly spread over the plan, as its share is the same in each segment.
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
            (stratum.bucket, documents)
            for stratum, stream in zip(strata, streams, strict=True)
            for documents in stream.draw(round(stratum.share * target))
        ]
        drawn = target


def _next_boundary(
    strata: list[Stratum], drawn: float, row_length: int, budget: int
) -> float:
    least = _MIN_SEGMENT_ROWS * row_length if len(strata) > 1 else 0.5
    ends = []
    for stratum in strata:
        epoch = stratum.tokens / stratum.share
        done = (drawn + least) / epoch
        ends.append(epoch * (int(done) + (0 if done == int(done) else 1)))
    return min(budget, *ends)


def check_repetition(
    strata: list[Stratum], tokens: int, max_epochs: float | None
) -> None:
    """DataError naming every stratum that `tokens` tokens of the blend would repeat
    more often than allowed.
    """
    if max_epochs is None:
        return
    over = [
        f"  {stratum.name}: {stratum.share * tokens / stratum.tokens:.2f} epochs of "
        f"{stratum.tokens} tokens"
        for stratum in strata
        if stratum.share * tokens > max_epochs * stratum.tokens * (1 + 1e-9)
    ]
    if over:
        raise DataError(
            f"a plan of {tokens} tokens repeats data more than max_epochs={max_epochs:g} times:\n"
            + "\n".join(over)
            + "\nadd data, lower its weight or the budget, or raise max_epochs"
        )
