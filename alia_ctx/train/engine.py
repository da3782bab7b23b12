"""What the trainer needs of a compute engine, and what it gets back.

`alia_ctx.mcore` implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alia_ctx.data.packing import PackedRow


@dataclass(frozen=True)
class RowLosses:
    """Losses of one row on one rank:

    `values` fp32 [t] and `predicted` bool [t] over the row's `ranges`, in order.
    """

    row: PackedRow
    ranges: tuple[tuple[int, int], ...]
    values: np.ndarray
    predicted: np.ndarray

    def as_row(self) -> np.ndarray:
        """fp32 [T]: losses in row order, NaN where nothing is predicted or another rank
        holds the token.
        """
        out = np.full(self.row.length, np.nan, dtype=np.float32)
        start = 0
        for a, b in self.ranges:
            part = slice(start, start + b - a)
            out[a:b] = np.where(self.predicted[part], self.values[part], np.nan)
            start += b - a
        return out


@dataclass(frozen=True)
class UpdateResult:
    """What one update did. `loss` is the mean over the predicted tokens of all ranks,
    `losses` this rank's own.
    """

    loss: float
    predicted_tokens: int
    gradient_norm: float
    applied: bool
    losses: tuple[RowLosses, ...]
    compute_seconds: float
    communication_seconds: float
    step_seconds: float


class PendingSave(Protocol):
    """A checkpoint being written in the background. `finish` is collective."""

    @property
    def done(self) -> bool: ...

    def finish(self) -> dict[str, dict[str, Any]]: ...


class Engine(Protocol):
    """What the trainer needs of a compute engine. Every method is collective."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def data_parallel_rank(self) -> int: ...

    @property
    def data_parallel_size(self) -> int: ...

    def train_update(
        self, rows: Sequence[PackedRow], learning_rate: float
    ) -> UpdateResult: ...

    def row_losses(self, rows: Sequence[PackedRow]) -> tuple[RowLosses, ...]: ...

    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray: ...

    def gather_objects(self, value: Any) -> list[Any]: ...

    def barrier(self) -> None: ...

    def memory_bytes(self) -> int: ...

    def begin_save(
        self, directory: Path, *, with_optimizer: bool = True
    ) -> PendingSave: ...

    def load(self, directory: Path, *, with_optimizer: bool) -> None: ...
