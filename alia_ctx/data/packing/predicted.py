"""How many positions of each row of a plan have a target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alia_ctx.data.packing.blend import Corpus
from alia_ctx.data.packing.plan_files import PackedRows
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError

_BLOCK_TOKENS = 1 << 24


def predicted_of_rows(
    stores: Sequence[TokenStore], corpus: Corpus, packed: PackedRows
) -> np.ndarray:
    """int64 [rows]: tokens of each row whose loss weight is 1, the first of each piece
    left out.

    The files of weights are read once, in blocks; a store without one costs nothing.
    DataError for a weight that is neither 0 nor 1.
    """
    counts = packed.piece_lengths - 1
    weighted = any(store.weights is not None for store in stores)
    sources = corpus.source_of(packed.piece_documents) if weighted else None
    for source, store in enumerate(stores):
        if store.weights is None:
            continue
        pieces = np.flatnonzero(sources == source)
        begins = store.starts(packed.piece_documents[pieces] - corpus.base[source])
        begins += packed.piece_starts[pieces].astype(np.int64)
        ends = begins + packed.piece_lengths[pieces]
        try:
            counts[pieces] = ones_between(store.weights, begins + 1, ends)
        except ValueError as error:
            raise DataError(
                f"{store.weights_path}: {error}; tokenize the source again"
            ) from error
    return np.add.reduceat(counts, packed.row_offsets[:-1], dtype=np.int64)


def ones_between(
    weights: np.ndarray, begins: np.ndarray, ends: np.ndarray, bits: int = 255
) -> np.ndarray:
    """Ones in each of [begins, ends); int64, as many. Of weights that are sets of bits
    only `bits` count.
    """
    points = np.unique(np.concatenate((begins, ends)))
    before = np.empty(points.size, np.int64)  # ones before each point
    ones = 0
    for low in range(0, weights.size + 1, _BLOCK_TOKENS):
        block = weights[low : low + _BLOCK_TOKENS] & bits
        if block.size and block.max() > 1:
            token = low + int(np.argmax(block > 1))
            raise ValueError(
                f"token {token} has loss weight {block.max()}, neither 0 nor 1"
            )
        running = np.zeros(block.size + 1, np.int64)
        np.cumsum(block, out=running[1:])
        first, last = np.searchsorted(points, (low, low + _BLOCK_TOKENS))
        before[first:last] = ones + running[points[first:last] - low]
        ones += int(running[-1])
    return (
        before[np.searchsorted(points, ends)] - before[np.searchsorted(points, begins)]
    )
