"""Training documents that are held-out documents too, word for word or nearly.

The same are two documents of the same tokens, whatever their length: a hash of each whole
document says so. Two are near duplicates where half of the shorter one's runs of 13 tokens
are in the other: 13-grams as in Brown et al. 2020 (arXiv 2005.14165, appendix C),
containment as in Broder 1997. What more than 64 held-out documents have in common is
boilerplate, and only a document's other runs are its own and count; of a document that
has hardly any of its own, all do. All tokens of all sources are read once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xxhash

from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError

RUN = 13  # tokens of a run
NEAR = 0.5  # share of the shorter document's runs
_CANDIDATE = 0.8 * NEAR  # of a sample of runs, before all are compared
_SKETCH = 64  # runs of a document that a sample has at least
_OWN = 0.1  # share of a document's runs; below it, all of them count
_BLOCK_TOKENS = 1 << 22
_FULL_TOKENS = 1 << 21  # of held-out text up to which every run is compared
_BOILERPLATE = 64  # a run in more held-out documents says nothing of any of them
_COUNT_BITS = 26
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_FILTER_BITS = 24


@dataclass(frozen=True)
class Contamination:
    """Which training documents are in the held-out text: numbers in their source, rising,
    int64, by source. `near` has those that are not `exact`. `held_out` is the numbers of
    the held-out documents that they are like.
    """

    exact: dict[str, np.ndarray]
    near: dict[str, np.ndarray]
    held_out: np.ndarray

    def documents(self, source: str) -> np.ndarray:
        """Exact and near, rising."""
        return np.union1d(self.exact[source], self.near[source])


def refuse_same_store(stores: Mapping[str, TokenStore], held_out: TokenStore) -> None:
    """DataError where a source's store is the held-out one, wherever the two lie."""
    for name, store in stores.items():
        if store.is_called(held_out.fingerprint) or held_out.is_called(
            store.fingerprint
        ):
            raise DataError(
                f"evaluation.held_out ({held_out.prefix}) has the same tokens as source "
                f"{name} ({store.prefix}): training would read the evaluation text; "
                "hold out other documents"
            )


def find_contamination(
    stores: Mapping[str, TokenStore],
    held_out: TokenStore,
    progress: Callable[[str, float], None] = lambda _what, _fraction: None,
    *,
    repeats: bool = True,
) -> Contamination:
    """Compare every document of every source with the held-out ones.

    repeats: whether documents that are the same in more than 64 places of the held-out
    text tell anything, as texts do and answers of a few words do not.
    """
    refuse_same_store(stores, held_out)
    copies = _copies(held_out)
    if not repeats:
        copies = {k: v for k, v in copies.items() if len(v) <= _BOILERPLATE}
    lengths = np.unique(held_out.lengths)
    firsts = np.sort(np.array([numbers[0] for numbers in copies.values()], np.int64))
    every = np.flatnonzero(held_out.lengths >= RUN)
    runs = RunIndex(held_out, firsts if repeats else every, all_count=repeats)
    exact: dict[str, np.ndarray] = {}
    near: dict[str, np.ndarray] = {}
    met: set[int] = set()
    total = sum(store.n_tokens for store in stores.values())
    done = 0
    for name, store in stores.items():
        same: set[int] = set()
        alike: set[int] = set()
        for first, last in _blocks(store):
            alike_lengths = np.isin(store.lengths[first:last], lengths)
            for document in (first + np.flatnonzero(alike_lengths)).tolist():
                if numbers := copies.get(_digest(store, document)):
                    same.add(document)
                    met.update(numbers)
            for document, other in runs.near(store, first, last, same):
                alike.add(document)
                met.update(copies.get(_digest(held_out, other), [other]))
            done += int(store.lengths[first:last].sum(dtype=np.int64))
            progress(f"comparing {name} with the held-out text", done / max(total, 1))
        exact[name] = np.array(sorted(same), np.int64)
        near[name] = np.array(sorted(alike), np.int64)
    return Contamination(exact, near, np.array(sorted(met), np.int64))


def _digest(store: TokenStore, document: int) -> bytes:
    """A hash of all tokens of a document, whatever their dtype in the store."""
    return xxhash.xxh3_128_digest(store.document(document).astype(np.int64).tobytes())


def _copies(store: TokenStore) -> dict[bytes, list[int]]:
    """The numbers of the documents of each hash; of none without tokens."""
    copies: dict[bytes, list[int]] = {}
    for number in np.flatnonzero(store.lengths).tolist():
        copies.setdefault(_digest(store, number), []).append(number)
    return copies


def _blocks(store: TokenStore) -> Iterator[tuple[int, int]]:
    """Ranges of documents of some 4 million tokens, the last of each not cut."""
    ends = np.cumsum(store.lengths, dtype=np.int64)
    first = 0
    while first < ends.size:
        begin = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, begin + _BLOCK_TOKENS, "left")) + 1
        yield first, min(last, ends.size)
        first = last


def _hashes(tokens: np.ndarray) -> np.ndarray:
    """A hash of each run of 13 tokens, uint64 [n - 12]: a polynomial modulo 2^64 as the
    difference of two prefix sums, taken back to power 0 and mixed.
    """
    if tokens.size < RUN:
        return np.empty(0, np.uint64)
    powers = np.full(tokens.size + 1, _FACTOR)
    powers[0] = 1
    np.cumprod(powers, out=powers)
    sums = np.zeros(tokens.size + 1, np.uint64)
    # + 1: a token of id 0 must count
    np.cumsum((tokens.astype(np.uint64) + np.uint64(1)) * powers[:-1], out=sums[1:])
    x = sums[RUN:] - sums[:-RUN]
    back = np.full(x.size, _INVERSE)
    back[0] = 1
    np.cumprod(back, out=back)
    x *= back
    x ^= x >> np.uint64(31)
    x *= _MIX
    x ^= x >> np.uint64(29)
    return x


def _document_runs(store: TokenStore, document: int) -> np.ndarray:
    return np.unique(_hashes(store.document(document)))


class RunIndex:
    """The runs of documents, as held-out ones: hashes, sorted, and the documents of each."""

    def __init__(
        self, store: TokenStore, documents: np.ndarray, *, all_count: bool
    ) -> None:
        """Of `documents` of the store. `all_count`: all runs of a document that has
        hardly any of its own tell what it is.
        """
        self._store = store
        # In how many documents a run is, by the beginning of its hash: too many buckets
        # for runs to meet in one by chance, other than with boilerplate.
        self._counts = np.zeros(1 << _COUNT_BITS, np.uint8)
        for number in documents.tolist():
            buckets = _beginning(_document_runs(store, number), _COUNT_BITS)
            self._counts[buckets] += self._counts[buckets] < np.iinfo(np.uint8).max
        # Of much text a sample suffices to find candidates: hashes below a limit.
        limit = np.uint64((1 << 64) // max(1, store.n_tokens // _FULL_TOKENS) - 1)
        self._sizes = np.zeros(store.n_documents, np.int64)
        self._shares = np.zeros(store.n_documents)  # of the runs, in the sample
        self._all_count = np.zeros(store.n_documents, bool)
        parts = [np.empty(0, np.uint64)]
        for number in documents.tolist():
            runs = _document_runs(store, number)
            own = self._own(runs)
            self._all_count[number] = all_count and own.size < _OWN * runs.size
            runs = runs if self._all_count[number] else own
            sample = runs[: max(int(np.searchsorted(runs, limit, "right")), _SKETCH)]
            self._sizes[number] = runs.size
            self._shares[number] = sample.size / max(runs.size, 1)
            parts.append(sample)
        hashes = np.concatenate(parts)
        numbers = np.repeat(documents, [part.size for part in parts[1:]])
        order = np.argsort(hashes, kind="stable")
        self._documents = numbers[order]
        self._hashes, self._firsts, counts = np.unique(
            hashes[order], return_index=True, return_counts=True
        )
        # Boilerplate is here for documents without words of their own; some suffice.
        self._postings = np.minimum(counts, _BOILERPLATE)
        # one bit for each possible beginning of a hash: most runs are ruled out here
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[_beginning(self._hashes, _FILTER_BITS)] = True

    def _own(self, runs: np.ndarray) -> np.ndarray:
        own: np.ndarray = runs[
            self._counts[_beginning(runs, _COUNT_BITS)] <= _BOILERPLATE
        ]
        return own

    def near(
        self, store: TokenStore, first: int, last: int, leave: Container[int]
    ) -> Iterator[tuple[int, int]]:
        """(document of the store, held-out document like it), of documents [first, last)
        without those to `leave`.
        """
        if not self._hashes.size:
            return
        begin, _ = store.starts(np.array([first, last]))
        ends = np.cumsum(store.lengths[first:last].astype(np.int64))
        hashes = _hashes(store.tokens[begin : begin + (ends[-1] if ends.size else 0)])
        runs: np.ndarray = np.empty(0, np.uint64)
        own, of = runs, -1
        for document, other, shared in self._sharing(hashes, ends):
            if first + document in leave:
                continue
            if document != of:
                start = ends[document] - int(store.lengths[first + document])
                runs = np.unique(hashes[start : ends[document] - RUN + 1])
                own, of = self._own(runs), document
            these = runs if self._all_count[other] else own
            shorter = min(int(self._sizes[other]), these.size)
            if shared < _CANDIDATE * self._shares[other] * shorter:
                continue
            if self._containment(these, other) >= NEAR:
                yield first + document, other

    def _sharing(
        self, hashes: np.ndarray, ends: np.ndarray
    ) -> Iterator[tuple[int, int, int]]:
        """(document, held-out document, runs of the latter's sample that both have), of
        documents that end at `ends`, in their order.
        """
        places = np.flatnonzero(self._filter[_beginning(hashes, _FILTER_BITS)])
        found = np.searchsorted(self._hashes, hashes[places])
        found = np.minimum(found, self._hashes.size - 1)
        documents = np.searchsorted(ends, places, "right")
        hit = self._hashes[found] == hashes[places]
        hit &= places + RUN <= ends[documents]  # not across the end of a document
        pairs = np.unique(np.stack((documents[hit], found[hit])), axis=1)
        if not pairs.size:
            return
        counts = self._postings[pairs[1]]
        offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        others = self._documents[np.repeat(self._firsts[pairs[1]], counts) + offset]
        both, shared = np.unique(
            np.stack((np.repeat(pairs[0], counts), others)), axis=1, return_counts=True
        )
        for pair, number in zip(both.T.tolist(), shared.tolist(), strict=True):
            yield pair[0], pair[1], number

    def _containment(self, runs: np.ndarray, other: int) -> float:
        """Share of the shorter document's distinct runs that are in the other."""
        theirs = _document_runs(self._store, other)
        if not self._all_count[other]:
            theirs = self._own(theirs)
        both = np.intersect1d(runs, theirs, assume_unique=True).size
        return both / max(1, min(runs.size, theirs.size))


def _beginning(hashes: np.ndarray, bits: int) -> np.ndarray:
    return (hashes * _FACTOR >> np.uint64(64 - bits)).astype(np.int64)
