"""Documents that are there twice, word for word, found in passing.

Two documents that are the same are as long, so that only those are read whose length
another has too. Of large sources these are nearly all, and it is not done in passing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xxhash

from alia_ctx.data.tokens import TokenStore

MOST_DOCUMENTS = 1 << 18  # that are read: a second or so
MOST_TOKENS = 1 << 28
_HELD_OUT = "\0held out"  # no source is called that


@dataclass
class Copies:
    """What is there twice.

    Args:
        held_out: documents of each source that are a held-out document: (document,
            held-out document).
        repeated: documents of each source that are an earlier one, of that source or of
            one before it: (document, source of the earlier one, its number).
        compared: whether the sources were compared with each other, too.
    """

    held_out: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    repeated: dict[str, list[tuple[int, str, int]]] = field(default_factory=dict)
    compared: bool = True


def find_copies(
    stores: Mapping[str, TokenStore],
    held_out: TokenStore | None = None,
    *,
    most_documents: int = MOST_DOCUMENTS,
    most_tokens: int = MOST_TOKENS,
) -> Copies | None:
    """The copies among the sources and, where there is one, in the held-out store. Where
    too many documents are as long as another, held-out text alone is looked for; None
    where that are too many as well.
    """
    every = dict(stores)
    if held_out is not None:
        every[_HELD_OUT] = held_out
    lengths, counts = np.unique(
        np.concatenate([store.lengths for store in every.values()]), return_counts=True
    )
    asked = lengths[(counts > 1) & (lengths > 0)]

    def cheap(asked: np.ndarray) -> bool:
        alike = [s.lengths[np.isin(s.lengths, asked)] for s in every.values()]
        tokens = sum(int(part.sum(dtype=np.int64)) for part in alike)
        return (
            sum(part.size for part in alike) <= most_documents and tokens <= most_tokens
        )

    copies = Copies(compared=cheap(asked))
    if not copies.compared:
        if held_out is None:
            return None
        asked = np.unique(held_out.lengths[held_out.lengths > 0])
        if not cheap(asked):
            return None
    held: dict[bytes, int] = {}
    if held_out is not None:
        for number, digest in _digests(held_out, asked):
            held.setdefault(digest, number)
    first: dict[bytes, tuple[str, int]] = {}
    for name, store in stores.items():
        copies.held_out[name], copies.repeated[name] = [], []
        for number, digest in _digests(store, asked):
            if digest in held:
                copies.held_out[name].append((number, held[digest]))
            if digest in first:
                copies.repeated[name].append((number, *first[digest]))
            first.setdefault(digest, (name, number))
    if not copies.compared:
        copies.repeated = {}
    return copies


def _digests(store: TokenStore, lengths: np.ndarray) -> list[tuple[int, bytes]]:
    """(number, hash of all tokens) of the documents that have one of the lengths."""
    return [
        (
            number,
            xxhash.xxh3_128_digest(store.document(number).astype(np.int64).tobytes()),
        )
        for number in np.flatnonzero(np.isin(store.lengths, lengths)).tolist()
    ]
