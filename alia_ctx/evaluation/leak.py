"""Does a document see its neighbours in the row? One token of one document is changed, and
the positions of all others whose loss moves, by any bit, are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import DataError

_LENGTHS = (5, 1, 3, 8, 2, 6)  # of the documents of a row, in parts of it
# Tokens of a row that holds so many documents, and one of them with a prediction to move.
LEAST_ROW = len(_LENGTHS) + 1


@dataclass(frozen=True)
class Probe:
    """Two rows that differ in one token, at `changed` in the row, of document `piece`."""

    row: PackedRow
    changed_row: PackedRow
    piece: int
    changed: int


def probes(vocab_size: int, context: int, *, seed: int = 1) -> Iterator[Probe]:
    """Rows of unequal random documents and some padding, with a token changed in the
    first, a middle, and the last document: at its first, a middle and its last token.
    `context`: tokens of a row, LEAST_ROW at least.
    """
    random = np.random.default_rng([seed, context])
    shares = np.array([*_LENGTHS, 1]) / (sum(_LENGTHS) + 1)
    sizes = np.maximum(1, (shares * context).astype(int))[:-1]
    texts = [random.integers(0, vocab_size, size) for size in sizes]
    row = PackedRow.from_documents(texts, context)
    for piece in (0, len(texts) // 2, len(texts) - 1):
        size = len(texts[piece])
        for at in sorted({0, size // 2, size - 1}):
            changed = [text.copy() for text in texts]
            changed[piece][at] = (changed[piece][at] + 1) % vocab_size
            yield Probe(
                row,
                PackedRow.from_documents(changed, context),
                piece,
                int(row.doc_offsets[piece]) + at,
            )


class LeakCounts:
    """Positions of other documents that were compared, and those whose loss moved."""

    def __init__(self) -> None:
        self.positions = self.moved = 0
        self.largest_difference = 0.0
        self.own_moved = 0

    def add(
        self,
        probe: Probe,
        losses_T: NDArray[np.floating[Any]],
        changed_T: NDArray[np.floating[Any]],
    ) -> None:
        """Compare the losses of the two rows, fp32 [T], nan where this rank has none."""
        start, stop = probe.row.doc_offsets[probe.piece : probe.piece + 2]
        there_T = ~np.isnan(losses_T)
        moved_T = there_T & (losses_T != changed_T)
        self.own_moved += int(moved_T[start:stop].sum())
        there_T[start:stop] = moved_T[start:stop] = False
        self.positions += int(there_T.sum())
        self.moved += int(moved_T.sum())
        if moved_T.any():
            difference = np.abs(losses_T[moved_T] - changed_T[moved_T])
            # A loss that became nan has moved as far as any.
            largest = float(np.nan_to_num(difference, nan=np.inf).max())
            self.largest_difference = max(self.largest_difference, largest)

    def merge(self, other: LeakCounts) -> None:
        """Add all that `other` holds, as when ranks hold other parts of the row."""
        self.positions += other.positions
        self.moved += other.moved
        self.own_moved += other.own_moved
        self.largest_difference = max(self.largest_difference, other.largest_difference)

    def to_json(self) -> dict[str, Any]:
        """All that this holds, in JSON's types; `from_json` reads it back."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LeakCounts:
        """The inverse of `to_json`; DataError where the data is of another form."""
        made = cls()
        try:
            for name in vars(made):
                setattr(made, name, data[name])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"no leak counts as `to_json` writes them: {error!r}"
            ) from error
        return made


def merged_replicas(parts: Iterable[tuple[int, Mapping[str, Any]]]) -> LeakCounts:
    """All ranks' counts, each with its data-parallel rank: of these every one reads the
    same rows, so that the one that moved most stands for all.
    """
    replicas: dict[int, LeakCounts] = {}
    for replica, part in parts:
        counts = replicas.setdefault(replica, LeakCounts())
        counts.merge(LeakCounts.from_json(part))
    return max(replicas.values(), key=lambda counts: counts.moved)
