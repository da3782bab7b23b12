"""Conversations that are held-out conversations too, word for word or nearly.

Many conversations have the same tools and the same system prompt, and all calls of a
function are the same but for its arguments: none are duplicates for that. So nearly alike
are those of which what users and assistant say is (as `contamination` defines it): their
words, and the values of calls. Of stores that do not tell what is said (`PREFIX.said`) it
is the trained tokens. The same are those of which all tokens are.
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
from alia_ctx.data.tokens.said import SAYS, said_of, said_path
from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file


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
    told = said_of(held_out) is not None and all(
        said_of(store) is not None or store.weights is None for store in stores.values()
    )
    parts = {
        name: cast(TokenStore, SaidTokens(store, told))
        for name, store in stores.items()
    }
    kept = cast(TokenStore, SaidTokens(held_out, told))
    near = find_contamination(parts, kept, progress, repeats=False)
    out = {}
    for name, store in stores.items():
        alike = np.flatnonzero(np.isin(store.lengths, lengths))
        same = [number for number in alike.tolist() if _hash(store, number) in hashes]
        out[name] = np.union1d(np.array(same, np.int64), near.documents(name))
    return out


def _hash(store: TokenStore, number: int) -> bytes:
    return xxhash.xxh3_128_digest(store.document(number).astype(np.int64).tobytes())


class SaidTokens:
    """The part of a TokenStore that `find_contamination` reads, of the tokens of each
    document that are said, or that are trained where the stores do not tell; of these
    none where they are too few for a run, as answers like "yes" make nothing alike.
    Nothing is copied until it is read.
    """

    def __init__(self, store: TokenStore, told: bool) -> None:
        self.prefix, self.fingerprint = store.prefix, f"said {store.fingerprint}"
        self._chosen = said_of(store) if told else store.weights
        self.n_documents = store.n_documents
        begins = store.starts(np.arange(store.n_documents))
        counts = store.lengths.astype(np.int64)
        if self._chosen is not None:
            counts = ones_between(self._chosen, begins, begins + counts, SAYS)
        self.lengths = counts if told else np.where(counts >= RUN, counts, 0)
        self._ends = np.concatenate(([0], np.cumsum(self.lengths)))
        self.n_tokens = int(self._ends[-1])
        self._store = store

    def is_called(self, fingerprint: str) -> bool:
        return self._store.is_called(fingerprint.removeprefix("said "))

    @property
    def tokens(self) -> SaidTokens:
        return self

    def __getitem__(self, part: slice) -> np.ndarray:
        """Tokens [start, stop) of those, counted over all documents."""
        first = max(int(np.searchsorted(self._ends, part.start, "right")) - 1, 0)
        last = int(np.searchsorted(self._ends, part.stop, "left"))
        store, documents = self._store, np.arange(first, last)
        if not documents.size:
            return np.empty(0, store.dtype)
        begin, end = store.starts(np.array([first, last]))
        chosen = np.repeat(self.lengths[documents] > 0, store.lengths[documents])
        if self._chosen is not None:
            chosen &= self._chosen[begin:end] & SAYS != 0
        tokens = store.tokens[begin:end][chosen]
        low = part.start - int(self._ends[first])
        return tokens[low : low + part.stop - part.start]

    def starts(self, documents: np.ndarray) -> np.ndarray:
        return cast(np.ndarray, self._ends[documents])

    def document(self, number: int) -> np.ndarray:
        return self[slice(int(self._ends[number]), int(self._ends[number + 1]))]


def write_held_out(
    prefix: Path, stores: Mapping[str, TokenStore], numbers: Mapping[str, np.ndarray]
) -> TokenStore:
    """Write the conversations `numbers` of each source, in that order, as a store with
    loss weights and with what of them is said, unless it is there already; and open it.
    """
    if (there := held_out_there(prefix, stores, numbers)) is not None:
        return there
    path = said_path(prefix)
    said = _said(stores, numbers)
    path.unlink(missing_ok=True)
    if said is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as stream:
            stream.write(said.tobytes())
    largest = max(store.largest_token_id() for store in stores.values())
    return write_store(
        prefix,
        (tokens for tokens, _ in _chosen(stores, numbers)),
        largest + 1,
        (weights for _, weights in _chosen(stores, numbers)),
    )


def held_out_there(
    prefix: Path, stores: Mapping[str, TokenStore], numbers: Mapping[str, np.ndarray]
) -> TokenStore | None:
    """The store that `write_held_out` would write, if it is at `prefix`."""
    with suppress(DataError):  # whatever is wrong with it, it is not that one
        there, said = TokenStore(prefix), _said(stores, numbers)
        told = said_of(there)
        same = (
            np.array_equal(told, said)
            if told is not None and said is not None
            else (told is said)
        )
        if same and _is_of(there, stores, numbers):
            return there
    return None


def _said(
    stores: Mapping[str, TokenStore], numbers: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """What of the conversations is said; None where one of the stores does not tell."""
    parts = [np.empty(0, np.uint8)]
    for name, documents in numbers.items():
        said = said_of(stores[name])
        if said is None:
            return None
        begins, ends = (
            stores[name].starts(documents),
            stores[name].starts(documents + 1),
        )
        parts += [
            said[begin:end]
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        ]
    return np.concatenate(parts)


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
