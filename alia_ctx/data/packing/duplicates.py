"""Conversations that are held-out conversations too, word for word or nearly.

Many conversations have the same tools and the same system prompt, and are no duplicates
for that. So nearly alike are those of which the trained tokens are (as `contamination`
defines it), and the same are those of which all tokens are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import xxhash

from alia_ctx.data.packing.contamination import RUN, find_contamination
from alia_ctx.data.packing.predicted import ones_between
from alia_ctx.data.tokens import TokenStore, write_store
from alia_ctx.errors import DataError


def duplicates_of(
    stores: Mapping[str, TokenStore],
    held_out: TokenStore,
    progress: Callable[[str, float], None] = lambda _what, _fraction: None,
) -> dict[str, np.ndarray]:
    """Numbers of the documents of each source that are held-out conversations, exactly
    (the held-out ones themselves among them) or nearly; rising.
    """
    lengths = np.unique(held_out.lengths)
    hashes = {_hash(held_out, number) for number in range(held_out.n_documents)}
    trained = {
        name: cast(TokenStore, _Trained(store)) for name, store in stores.items()
    }
    answers = cast(TokenStore, _Trained(held_out))
    near = find_contamination(trained, answers, progress, repeats=False)
    out = {}
    for name, store in stores.items():
        alike = np.flatnonzero(np.isin(store.lengths, lengths))
        same = [number for number in alike.tolist() if _hash(store, number) in hashes]
        out[name] = np.union1d(np.array(same, np.int64), near.documents(name))
    return out


def _hash(store: TokenStore, number: int) -> bytes:
    return xxhash.xxh3_128_digest(store.document(number).astype(np.int64).tobytes())


class _Trained:
    """The part of a TokenStore that `find_contamination` reads, of the trained tokens of
    each document; none where they are too few for a run, as answers like "yes" make
    nothing alike. Nothing is copied until it is read.
    """

    def __init__(self, store: TokenStore) -> None:
        self.prefix, self.fingerprint = store.prefix, f"trained {store.fingerprint}"
        self.n_documents = store.n_documents
        begins = store.starts(np.arange(store.n_documents))
        counts = store.lengths.astype(np.int64)
        if store.weights is not None:
            counts = ones_between(store.weights, begins, begins + counts)
        self.lengths = np.where(counts >= RUN, counts, 0)
        self._ends = np.concatenate(([0], np.cumsum(self.lengths)))
        self.n_tokens = int(self._ends[-1])
        self._store = store

    def is_called(self, fingerprint: str) -> bool:
        return self._store.is_called(fingerprint.removeprefix("trained "))

    @property
    def tokens(self) -> _Trained:
        return self

    def __getitem__(self, part: slice) -> np.ndarray:
        """Trained tokens [start, stop), counted over all documents."""
        first = max(int(np.searchsorted(self._ends, part.start, "right")) - 1, 0)
        last = int(np.searchsorted(self._ends, part.stop, "left"))
        store, documents = self._store, np.arange(first, last)
        if not documents.size:
            return np.empty(0, store.dtype)
        begin, end = store.starts(np.array([first, last]))
        chosen = np.repeat(self.lengths[documents] > 0, store.lengths[documents])
        if store.weights is not None:
            chosen &= store.weights[begin:end] != 0
        trained = store.tokens[begin:end][chosen]
        low = part.start - int(self._ends[first])
        return trained[low : low + part.stop - part.start]

    def starts(self, documents: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, self._ends[documents])

    def document(self, number: int) -> np.ndarray:
        return self[slice(int(self._ends[number]), int(self._ends[number + 1]))]


def write_held_out(
    prefix: Path, stores: Mapping[str, TokenStore], numbers: Mapping[str, np.ndarray]
) -> TokenStore:
    """Write the conversations `numbers` of each source, in that order, as a store with
    loss weights, unless it is there already; and open it.
    """
    with suppress(DataError):  # whatever is wrong with it, it is written anew
        there = TokenStore(prefix)
        if _is_of(there, stores, numbers):
            return there
    largest = max(store.largest_token_id() for store in stores.values())
    return write_store(
        prefix,
        (tokens for tokens, _ in _chosen(stores, numbers)),
        largest + 1,
        (weights for _, weights in _chosen(stores, numbers)),
    )


def _chosen(
    stores: Mapping[str, TokenStore], numbers: Mapping[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for name, documents in numbers.items():
        store = stores[name]
        begins, ends = store.starts(documents), store.starts(documents + 1)
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            weights = store.weights
            ones = np.ones(end - begin, np.uint8)
            yield (
                store.tokens[begin:end],
                ones if weights is None else weights[begin:end],
            )


def _is_of(
    there: TokenStore,
    stores: Mapping[str, TokenStore],
    numbers: Mapping[str, np.ndarray],
) -> bool:
    ends = np.concatenate(([0], np.cumsum(there.lengths, dtype=np.int64)))
    chosen = list(_chosen(stores, numbers))
    if there.weights is None or there.n_documents != len(chosen):
        return False
    return all(
        np.array_equal(there.tokens[begin:end], tokens)
        and np.array_equal(there.weights[begin:end], weights)
        for (begin, end), (tokens, weights) in zip(
            pairwise(ends.tolist()), chosen, strict=True
        )
    )
