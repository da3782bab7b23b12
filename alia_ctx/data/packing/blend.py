"""Which documents are trained on, and in which proportion: the blend by source and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from alia_ctx.data.packing.history import History, Spans, unseen_spans
from alia_ctx.data.packing.spec import LengthBucket, PackSpec
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError

LEAST_TOKENS = 2  # of a document; fewer predict nothing
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
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
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    contaminated: Mapping[str, np.ndarray] | None = None,
) -> Corpus:
    """Number all documents and drop what cannot be used; DataError where nothing is left.

    contaminated: by source, numbers of documents that are held-out text.
    """
    names = tuple(stores)
    base = np.concatenate(
        ([0], np.cumsum([stores[name].n_documents for name in names]))
    )
    lengths = np.concatenate([stores[name].lengths for name in names])
    usable: list[np.ndarray] = []
    dropped = {}
    for name, first in zip(names, base[:-1].tolist(), strict=True):
        own = stores[name].lengths
        tiny = own < LEAST_TOKENS
        held_out = np.zeros_like(tiny)
        if contaminated is not None:
            held_out[contaminated[name]] = True
            held_out &= ~tiny
        drop_long = spec.long_docs == "drop"
        long = (own > row_length) & ~held_out if drop_long else np.zeros_like(tiny)
        usable.append(np.flatnonzero(~(tiny | long | held_out)) + first)
        dropped[name] = {
            "short_documents": int(tiny.sum()),
            "short_tokens": int(own[tiny].sum(dtype=np.int64)),
            "long_documents": int(long.sum()),
            "long_tokens": int(own[long].sum(dtype=np.int64)),
            "contaminated_documents": int(held_out.sum()),
            "contaminated_tokens": int(own[held_out].sum(dtype=np.int64)),
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
    """Documents that are drawn together: a source, a length bucket, both, or everything.

    documents: int64, their numbers, rising; tokens: of all of them; share: of the plan's
        tokens; bucket: number of the length bucket.
    passes: how often all of them were trained on before; unseen: what the pass under way
        has not trained on yet; trained: tokens trained on before, repetitions counted.
    """

    name: str
    documents: np.ndarray
    tokens: int
    share: float
    bucket: int
    passes: int
    unseen: Spans
    trained: int

    @cached_property
    def unseen_tokens(self) -> int:
        return int(self.unseen.length.sum(dtype=np.int64))


def stratify(
    corpus: Corpus, spec: PackSpec, history: History | None = None
) -> list[Stratum]:
    """Split the usable documents by what the spec weighs, and give each part its share
    of the tokens.

    With weights and length buckets both, the shares are those nearest to the data that
    meet both margins (iterative proportional fitting); DataError where no shares do.
    With a `history` sources are strata even without weights (of shares by size), as
    different parts of them may have been trained on.
    """
    by_source = bool(spec.weights) or (history is not None and len(corpus.names) > 1)
    sources = (
        corpus.source_of(corpus.usable)
        if by_source
        else np.zeros(corpus.usable.size, np.int32)
    )
    names = corpus.names if by_source else ("",)
    lengths = corpus.lengths[corpus.usable]
    buckets = buckets_of(lengths, spec.length_buckets)
    labels = _labels(spec)
    cell = sources * len(labels) + buckets
    tokens = np.bincount(
        cell, weights=lengths, minlength=len(names) * len(labels)
    ).reshape(len(names), len(labels))
    shares = fit_shares(tokens, names, spec)
    strata = []
    for row, column in zip(*np.nonzero(shares), strict=True):
        documents = corpus.usable[cell == row * len(labels) + column]
        whole = Spans(
            documents,
            np.broadcast_to(np.int64(0), documents.size),
            corpus.lengths[documents],
        )
        strata.append(
            Stratum(
                " ".join(filter(None, (names[row], labels[column]))) or "all",
                documents,
                int(tokens[row, column]),
                float(shares[row, column]),
                column,
                int(history.times[documents].min()) if history else 0,
                unseen_spans(history, documents, corpus.lengths) if history else whole,
                int(history.tokens[documents].sum()) if history else 0,
            )
        )
    return strata


def buckets_of(lengths: np.ndarray, buckets: Sequence[LengthBucket]) -> np.ndarray:
    """Number of the length bucket of documents of these lengths; int64, as many. 0 is
    below the first, and of all where there are none.
    """
    bounds = [bucket.min_tokens for bucket in buckets]
    if not bounds:
        return np.zeros(lengths.size, np.int64)
    return np.searchsorted(bounds, lengths, "right")


def bucket_shares(buckets: Sequence[LengthBucket]) -> list[float]:
    """The share of the tokens that each length bucket is to give, that below the first
    bucket first; empty where none are set.
    """
    shares = [bucket.share for bucket in buckets]
    return [max(0.0, 1 - sum(shares)), *shares] if shares else []


def _labels(spec: PackSpec) -> list[str]:
    bounds = [bucket.min_tokens for bucket in spec.length_buckets]
    return [f"{low}+ tokens" for low in [0, *bounds]] if bounds else [""]


def fit_shares(
    tokens: np.ndarray, names: tuple[str, ...], spec: PackSpec
) -> np.ndarray:
    """The share of the plan's tokens that each source and length bucket gets, of usable
    `tokens`: float64 [sources, buckets] both. DataError where no shares meet the spec.
    """
    labels = _labels(spec)
    rows = np.array([spec.weights[name] for name in names]) if spec.weights else None
    shares = bucket_shares(spec.length_buckets)
    columns = np.array(shares) if shares else None
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


def check_repetition(
    strata: list[Stratum], tokens: int, max_epochs: float | None
) -> None:
    """DataError naming every stratum that `tokens` tokens of the blend, with what was
    trained on before, would repeat more often than allowed.
    """
    if max_epochs is None:
        return
    over = []
    for stratum in strata:
        trained = stratum.share * tokens + stratum.trained
        if trained > max_epochs * stratum.tokens * (1 + 1e-9):
            before = stratum.trained / stratum.tokens
            over.append(
                f"  {stratum.name}: {trained / stratum.tokens:.2f} epochs of "
                f"{stratum.tokens} tokens"
                + (f", {before:.2f} of them before" if before else "")
            )
    if over:
        raise DataError(
            f"a plan of {tokens} tokens repeats data more than max_epochs={max_epochs:g} times:\n"
            + "\n".join(over)
            + "\nadd data, lower its weight or the budget, or raise max_epochs"
        )
