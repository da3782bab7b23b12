"""Documents that a stage's sources hold more than once, word for word or nearly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xxhash

from alia_ctx.data.packing.contamination import RUN, RunIndex
from alia_ctx.data.packing.duplicates import SaidTokens
from alia_ctx.data.tokens import TokenStore
from alia_ctx.data.tokens.said import said_of

# Compared with each other for what is nearly the same: all documents of small sources, an
# even sample of large ones.
SAMPLE_TOKENS = 1 << 20
_NAMED = 5  # copies of a source


@dataclass(frozen=True)
class SourceRepeats:
    """Of one source: copies beyond the first of their kind in all sources, among all its
    `documents`; and of those `compared` with each other the ones that are nearly another,
    of any source, and no copy. `first`: of the first copies, and of the earlier document
    that each is like, the source and number.
    """

    documents: int
    copies: int
    compared: int
    near: int
    first: tuple[tuple[int, str, int], ...] = ()


def find_repeats(
    stores: Mapping[str, TokenStore],
    progress: Callable[[str, float], None] = lambda _what, _fraction: None,
    *,
    sample_tokens: int = SAMPLE_TOKENS,
) -> dict[str, SourceRepeats]:
    """What the sources hold more than once. Nearly alike is as for held-out text: most of
    the shorter one's runs of 13 tokens are in the other; of conversations, runs of what is
    said. Reads all tokens.
    """
    copies, first_copies = _copies(stores, progress)
    sample = {
        name: _sample(store, copies[name], max(1, sample_tokens // len(stores)))
        for name, store in stores.items()
    }
    documents = [
        _as_compared(stores[name]).document(number)
        for name, numbers in sample.items()
        for number in numbers.tolist()
    ]
    near = _near(documents, progress)
    first, found = 0, {}
    for name, numbers in sample.items():
        last = first + numbers.size
        alike = sum(first <= number < last for number in near)
        repeated = int(copies[name].sum())
        found[name] = SourceRepeats(
            stores[name].n_documents, repeated, numbers.size, alike, first_copies[name]
        )
        first = last
    return found


def _copies(
    stores: Mapping[str, TokenStore], progress: Callable[[str, float], None]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[tuple[int, str, int], ...]]]:
    """Whether each document is a copy of an earlier one, of its source or one before it;
    and the first `_NAMED` of each source with that one. Documents without tokens are none.
    """
    hashes = np.empty(sum(store.n_documents for store in stores.values()), np.uint64)
    place = 0
    for name, store in stores.items():
        for number in range(store.n_documents):
            tokens = store.document(number).astype(np.int64)
            hashes[place] = xxhash.xxh3_64_intdigest(tokens.tobytes())
            place += 1
            if number % 1024 == 0:
                progress(f"looking for copies in {name}", place / hashes.size)
    _, firsts, group = np.unique(hashes, return_index=True, return_inverse=True)
    is_copy = np.ones(hashes.size, bool)
    is_copy[firsts] = False
    ends = np.cumsum([store.n_documents for store in stores.values()])
    names, copies, first = list(stores), {}, {}
    for name, end in zip(names, ends.tolist(), strict=True):
        store = stores[name]
        begin = end - store.n_documents
        copies[name] = is_copy[begin:end] & (store.lengths > 0)
        pairs = []
        for number in np.flatnonzero(copies[name])[:_NAMED].tolist():
            earlier = int(firsts[group[begin + number]])
            of = int(np.searchsorted(ends, earlier, "right"))
            other = names[of]
            pairs.append(
                (number, other, earlier - int(ends[of]) + stores[other].n_documents)
            )
        first[name] = tuple(pairs)
    return copies, first


def _sample(store: TokenStore, is_copy: np.ndarray, tokens: int) -> np.ndarray:
    """Numbers of documents that are no copies, evenly spread, of so many tokens or less."""
    numbers = np.flatnonzero(~is_copy & (store.lengths > 0))
    lengths = store.lengths[numbers].astype(np.int64)
    step = max(1, -(-int(lengths.sum()) // tokens))
    numbers, lengths = numbers[::step], lengths[::step]
    taken: np.ndarray = numbers[np.cumsum(lengths) <= tokens]
    return taken


def _as_compared(store: TokenStore) -> Any:
    """A store of conversations by what is said in them: prompts and tools are shared."""
    if store.weights is None:
        return store
    return SaidTokens(store, said_of(store) is not None)


class _Documents:
    """Documents in memory: the part of a TokenStore that runs are read from."""

    def __init__(self, documents: list[np.ndarray]) -> None:
        self.n_documents = len(documents)
        self.lengths = np.array([len(d) for d in documents], np.int64)
        self._ends = np.concatenate(([0], np.cumsum(self.lengths)))
        self.n_tokens = int(self._ends[-1])
        whole = [d.astype(np.int64) for d in documents]
        self.tokens = np.concatenate(whole) if whole else np.empty(0, np.int64)

    def starts(self, documents: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, self._ends[documents])

    def document(self, number: int) -> np.ndarray:
        return cast(
            np.ndarray, self.tokens[self._ends[number] : self._ends[number + 1]]
        )


def _near(
    documents: list[np.ndarray], progress: Callable[[str, float], None]
) -> set[int]:
    """Numbers of the documents that are nearly another of them."""
    store = cast(TokenStore, _Documents(documents))
    long_enough = np.flatnonzero(store.lengths >= RUN)
    if not long_enough.size:
        return set()
    progress("comparing documents with each other", 0.0)
    index = RunIndex(store, long_enough, all_count=True)
    near: set[int] = set()
    for document, other in index.near(store, 0, store.n_documents, ()):
        if document != other:
            near |= {document, other}
    progress("comparing documents with each other", 1.0)
    return near
