"""What an evaluator is: rows of held-out text in, what a model made of them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray


class RowPieces(Protocol):
    """The part of a packed row that evaluators read: T tokens in P document pieces."""

    @property
    def length(self) -> int: ...
    @property
    def doc_offsets(self) -> NDArray[np.int64]: ...
    @property
    def doc_ids(self) -> NDArray[np.int64]: ...
    @property
    def sources(self) -> NDArray[np.int32]: ...


class Evaluator(Protocol):
    """Accumulates what a model made of rows, row by row, on any number of ranks.

    Every rank adds the rows it ran; `to_json` carries what it holds to the others (and
    to disk), `from_json` takes it up again, and `merge` adds it. The order of neither
    may matter beyond rounding.
    """

    def add(
        self,
        row: RowPieces,
        losses_T: NDArray[np.floating[Any]],
        hits_T: NDArray[np.bool_] | None = None,
        *,
        position_offset: Sequence[int] | None = None,
    ) -> None:
        """Add one row.

        losses_T: loss in nats of each token's target, float [T], nan where nothing is
        predicted, or where another rank has it. hits_T: bool [T], whether greedy
        decoding would give the target; None where nobody asked. position_offset: for
        each piece [P], the position of its first token in the document.
        """
        ...

    def merge(self, other: Self) -> None:
        """Add all that `other` holds; DataError where it counts something else."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All that this holds, in JSON's types."""
        ...

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; DataError where the data is of another form."""
        ...
