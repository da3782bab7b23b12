"""What the first rows of a plan hold of each source."""

from __future__ import annotations

import numpy as np

from alia_ctx.data.packing.plan_files import PackedRows

_PIECES = 1 << 22  # looked at at once: some 100 MB


class Consumed:
    """Counts by source of the first rows of a plan, which remember how far they went: a
    trainer asks with each checkpoint, for more rows than before.

    Args:
        packed: the plan's rows.
        base: int64 [sources + 1], number of each source's first document, and the end.
    """

    def __init__(self, packed: PackedRows, base: np.ndarray) -> None:
        self._packed, self._base = packed, base
        self._begin()

    def _begin(self) -> None:
        self._rows = 0
        sources = self._base.size - 1
        self._tokens = np.zeros(sources, np.int64)
        self._documents = np.zeros(sources, np.int64)

    def of_rows(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, and documents that begin, in rows [0, rows): int64 [sources] each."""
        if rows < self._rows:
            self._begin()
        low, high = map(int, self._packed.row_offsets[[self._rows, rows]])
        for start in range(low, high, _PIECES):
            self._add(slice(start, min(start + _PIECES, high)))
        self._rows = rows
        return self._tokens.copy(), self._documents.copy()

    def _add(self, pieces: slice) -> None:
        packed, sources = self._packed, self._base.size - 1
        of = np.searchsorted(self._base, packed.piece_documents[pieces], "right") - 1
        # Weights of float64 count exactly below 2**53 tokens.
        lengths = packed.piece_lengths[pieces]
        self._tokens += np.bincount(of, lengths, sources).astype(np.int64)
        begun = of[packed.piece_starts[pieces] == 0]
        self._documents += np.bincount(begun, minlength=sources)
