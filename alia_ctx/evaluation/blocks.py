"""What far context brings: the same tokens with all of the document before them, and with
no more than a block of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alia_ctx.evaluation.evaluator import RowPieces
from alia_ctx.evaluation.positions import PositionBands


class WithoutBlockEnds(PositionBands):
    """`PositionBands` that leaves out the last position of each block of `blocks` tokens
    of a document, for each of these sizes: a model that sees blocks predicts nothing
    there, so that sides that leave out the ends of both count equal tokens. `overlap`:
    tokens of the block before that a block begins with; 1 where BOS takes the place of
    one.
    """

    def __init__(
        self,
        edges: Sequence[int],
        *,
        blocks: Sequence[int] = (),
        overlap: int = 0,
        per_octave: int = 4,
        sources: Sequence[str] = (),
    ) -> None:
        super().__init__(edges, per_octave=per_octave, sources=sources)
        self.blocks, self.overlap = tuple(blocks), overlap

    def add(
        self,
        row: RowPieces,
        losses_T: NDArray[np.floating[Any]],
        hits_T: NDArray[np.bool_] | None = None,
        *,
        position_offset: Sequence[int] | None = None,
    ) -> None:
        kept_T = np.array(losses_T, np.float64)
        offsets = [0] * len(row.doc_ids) if position_offset is None else position_offset
        for piece, offset in enumerate(offsets):
            start, stop = row.doc_offsets[piece : piece + 2].tolist()
            for block in self.blocks:
                step = block - self.overlap
                last = block - 1 - offset  # of the first block, as places of the piece
                first = start + (last if last >= 0 else last % step)
                kept_T[first:stop:step] = np.nan
        super().add(row, kept_T, position_offset=position_offset)


def far_context_gain(
    whole: PositionBands, blocks: PositionBands, block: int, shown: int
) -> dict[str, Any]:
    """Nats a token by which a model does better with all of the document before it than
    with its own block alone, by position: mean over documents, which are the independent
    draws, with the standard error of that mean (None below two documents).

    Both sides are of one model and one text, and leave out the same positions. `shown`:
    tokens that the model sees at most. Positions past them have not all of the document
    before them, but blocks of `shown` tokens: no edge but `shown` parts the two.
    """
    bands = []
    for start, stop in pairwise(whole.edges):
        keys, whole_D2 = whole.per_document(start, stop)
        others, blocks_D2 = blocks.per_document(start, stop)
        at = {key: i for i, key in enumerate(others)}
        pairs = [(i, at[key]) for i, key in enumerate(keys) if key in at]
        gains = np.array(
            [
                blocks_D2[j, 0] / blocks_D2[j, 1] - whole_D2[i, 0] / whole_D2[i, 1]
                for i, j in pairs
            ]
        )
        count = len(gains)
        error = float(gains.std(ddof=1)) / math.sqrt(count) if count > 1 else None
        bands.append(
            {
                "first": start,
                "last": stop,
                "documents": count,
                "gain": float(gains.mean()) if count else None,
                "standard_error": error,
            }
        )
    return {"block": block, "shown": shown, "bands": bands}
