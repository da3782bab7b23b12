"""Training documents that are held-out documents too, word for word or nearly.

Two documents are near duplicates where half of the shorter one's runs of 13 tokens are
in the other: 13-grams as in Brown et al. 2020 (arXiv 2005.14165, appendix C), containment
as in Broder 1997. All tokens of all sources are read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError

RUN = 13  # tokens of a run
NEAR = 0.5  # share of the shorter document's runs
_CANDIDATE = 0.8 * NEAR  # of a sample of runs, before all are compared
_BLOCK_TOKENS = 1 << 22
_FULL_TOKENS = 1 << 21  # of held-out text up to which every run is compared
_BOILERPLATE = 64  # a run in more held-out documents says nothing of any of them
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
) -> Contamination:
    """Compare every document of every source with the held-out ones."""
    refuse_same_store(stores, held_out)
    runs = _HeldOutRuns(held_out)
    short = {
        held_out.document(number).astype(np.int64).tobytes(): number
        for number in np.flatnonzero(held_out.lengths < RUN).tolist()
        if held_out.lengths[number]
    }
    exact: dict[str, np.ndarray] = {}
    near: dict[str, np.ndarray] = {}
    met: set[int] = set()
    total = sum(store.n_tokens for store in stores.values())
    done = 0
    for name, store in stores.items():
        same: set[int] = set()
        alike: set[int] = set()
        for first, last in _blocks(store):
            for document, other in runs.candidates(store, first, last):
                if _equal(store, document, held_out, other):
                    same.add(document)
                elif _containment(store, document, held_out, other) >= NEAR:
                    alike.add(document)
                else:
                    continue
                met.add(other)
            done += int(store.lengths[first:last].sum(dtype=np.int64))
            progress(f"comparing {name} with the held-out text", done / max(total, 1))
        if short:  # too short for runs: only the very same
            few = np.flatnonzero((store.lengths < RUN) & (store.lengths > 0))
            for document in few.tolist():
                tokens = store.document(document).astype(np.int64).tobytes()
                if tokens in short:
                    same.add(document)
                    met.add(short[tokens])
        exact[name] = np.array(sorted(same), np.int64)
        near[name] = np.array(sorted(alike - same), np.int64)
    return Contamination(exact, near, np.array(sorted(met), np.int64))


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


class _HeldOutRuns:
    """The runs of the held-out documents: hashes, sorted, and the documents of each."""

    def __init__(self, store: TokenStore) -> None:
        # of much text a sample suffices to find candidates: hashes below a limit
        self._keep = np.uint64((1 << 64) // max(1, store.n_tokens // _FULL_TOKENS) - 1)
        parts = [
            self._sample(_document_runs(store, n)) for n in range(store.n_documents)
        ]
        self._sizes = np.array([part.size for part in parts], np.int64)
        hashes = np.concatenate([np.empty(0, np.uint64), *parts])
        order = np.argsort(hashes, kind="stable")
        self._documents = np.repeat(np.arange(len(parts)), self._sizes)[order]
        self._hashes, self._firsts, self._counts = np.unique(
            hashes[order], return_index=True, return_counts=True
        )
        # one bit for each possible beginning of a hash: most runs are ruled out here
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[self._beginning(self._hashes)] = True

    def _sample(self, hashes: np.ndarray) -> np.ndarray:
        return hashes[hashes <= self._keep]

    @staticmethod
    def _beginning(hashes: np.ndarray) -> np.ndarray:
        return (hashes * _FACTOR >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)

    def candidates(
        self, store: TokenStore, first: int, last: int
    ) -> Iterator[tuple[int, int]]:
        """(document of the store, held-out document) that share enough runs to be
        compared, of documents [first, last).
        """
        if not self._hashes.size:
            return
        begin, _ = store.starts(np.array([first, last]))
        lengths = store.lengths[first:last].astype(np.int64)
        ends = np.cumsum(lengths)
        hashes = _hashes(store.tokens[begin : begin + (ends[-1] if ends.size else 0)])
        places = np.flatnonzero(
            (hashes <= self._keep) & self._filter[self._beginning(hashes)]
        )
        found = np.searchsorted(self._hashes, hashes[places])
        found = np.minimum(found, self._hashes.size - 1)
        documents = np.searchsorted(ends, places, "right")
        hit = self._hashes[found] == hashes[places]
        hit &= places + RUN <= ends[documents]  # not across the end of a document
        hit &= self._counts[found] <= _BOILERPLATE
        pairs = np.unique(np.stack((documents[hit], found[hit])), axis=1)
        if not pairs.size:
            return
        counts = self._counts[pairs[1]]
        offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        others = self._documents[np.repeat(self._firsts[pairs[1]], counts) + offset]
        both, shared = np.unique(
            np.stack((np.repeat(pairs[0], counts), others)), axis=1, return_counts=True
        )
        share = (int(self._keep) + 1) / 2**64
        shorter = np.minimum(
            self._sizes[both[1]], np.ceil((lengths[both[0]] - RUN + 1) * share)
        )
        for document, other in both[:, shared >= _CANDIDATE * shorter].T.tolist():
            yield first + document, other


def _equal(a: TokenStore, document: int, b: TokenStore, other: int) -> bool:
    return bool(np.array_equal(a.document(document), b.document(other)))


def _containment(a: TokenStore, document: int, b: TokenStore, other: int) -> float:
    """Share of the shorter document's distinct runs that are in the other."""
    first, second = _document_runs(a, document), _document_runs(b, other)
    both = np.intersect1d(first, second, assume_unique=True).size
    return both / max(1, min(first.size, second.size))
