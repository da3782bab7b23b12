"""Text that a row has twice: its second time is seen with the first in the same update."""

from __future__ import annotations

import numpy as np

from alia_ctx.data.packing.plan_files import PackedRows

_PIECES = 1 << 22  # looked at at once, and a row at least: some 200 MB


def repeated_in_rows(packed: PackedRows, base: np.ndarray) -> np.ndarray:
    """Pieces that their row has already, the same part of the same document; int64
    [sources]. `base`: int64 [sources + 1], number of each source's first document, and
    the end.
    """
    found = np.zeros(base.size - 1, np.int64)
    offsets, first = packed.row_offsets.astype(np.int64), 0
    while first < len(packed):
        last = int(np.searchsorted(offsets, offsets[first] + _PIECES, "right")) - 1
        last = min(max(last, first + 1), len(packed))
        part = slice(int(offsets[first]), int(offsets[last]))
        row = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
        columns = (packed.piece_starts[part], packed.piece_documents[part], row)
        order = np.lexsort(columns)
        same = np.logical_and.reduce([c[order][1:] == c[order][:-1] for c in columns])
        again = packed.piece_documents[part][order[1:][same]]
        of = np.searchsorted(base, again, "right") - 1
        found += np.bincount(of, minlength=found.size)
        first = last
    return found
