"""What training and evaluation need of a compute engine, and what they get back.

`alia_ctx.mcore` implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from alia_ctx.data.packing import PackedRow
from alia_ctx.spec.execution import Precision


@dataclass(frozen=True)
class RowLosses:
    """Losses of one row (packed sequence) on one rank, over the row's `ranges` in order.

    `values` fp32 [t] in nats and 0 where nothing is predicted, `predicted` bool [t], and
    `hits` bool [t]: greedy decoding would give the target (of equal logits the lowest
    index wins, as in torch.argmax). `weights` fp32 [t]: what each counts in the update's
    loss; None where all count alike.
    """

    row: PackedRow
    ranges: tuple[tuple[int, int], ...]
    values: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    weights: np.ndarray | None = None

    @property
    def total(self) -> float:
        """Sum of the losses, each by its weight."""
        if self.weights is None:
            return float(self.values.sum(dtype=np.float64))
        return float(np.dot(self.values.astype(np.float64), self.weights))

    def as_row(self) -> np.ndarray:
        """fp32 [T]: losses in row order, NaN where nothing is predicted or another rank
        holds the token.
        """
        losses = np.where(self.predicted, self.values, np.float32(np.nan))
        return self._in_row_order(losses, np.nan)

    def hits_as_row(self) -> np.ndarray:
        """bool [T]: hits in row order, False where nothing is predicted or another rank
        holds the token.
        """
        return self._in_row_order(self.hits, False)

    def _in_row_order(self, values: np.ndarray, elsewhere: float) -> np.ndarray:
        out = np.full(self.row.length, elsewhere, dtype=values.dtype)
        start = 0
        for a, b in self.ranges:
            out[a:b] = values[start : start + b - a]
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
    """A checkpoint being written in the background."""

    @property
    def done(self) -> bool:
        """Whether this rank has written its part, or failed to."""
        ...

    @property
    def ended_at(self) -> float:
        """When it had, by `time.perf_counter`; 0.0 before."""
        ...

    def finish(self) -> dict[str, dict[str, Any]]:
        """Wait for all ranks; size and checksum of every file, on every rank. Collective.

        Raises CheckpointError, on all ranks alike, where any rank could not write.
        """
        ...


class Scorer(Protocol):
    """A model on this rank that reads rows: all that evaluation needs.

    Every method is collective: all ranks call it, in the same order.
    """

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def data_parallel_rank(self) -> int: ...

    @property
    def data_parallel_size(self) -> int: ...

    def row_losses(self, rows: Sequence[PackedRow]) -> tuple[RowLosses, ...]:
        """Losses and hits per token of `rows` without training, on the ranks that report
        them (empty elsewhere): over all ranks each predicted token of each row is
        reported once.
        """
        ...

    def gather_objects(self, value: Any) -> list[Any]:
        """`value` (picklable, small) of every rank in rank order, on every rank."""
        ...


class Engine(Scorer, Protocol):
    """One stage's model, gradients and optimizer on this rank.

    Every method but `memory_bytes` is collective: all ranks call it, in the same order.
    """

    @property
    def precision_on_disk(self) -> dict[str, Precision | None]:
        """The precision of what `begin_save` writes: `weights`, those computed with, and
        `main_weights`, those stepped (None without an optimizer).
        """
        ...

    def train_update(
        self, rows: Sequence[PackedRow], learning_rate: float
    ) -> UpdateResult:
        """One optimizer update over `rows`, those of this data-parallel rank; ranks may
        bring unequal numbers, and none.

        A NaN or infinite loss or gradient raises nothing: nothing is changed then, and
        the result's `applied` says so. The same holds where nothing is predicted, with
        loss and gradient norm 0.
        """
        ...

    def reduce_losses(self, losses: Sequence[RowLosses]) -> tuple[float, int]:
        """Mean loss in nats over the predicted tokens of all ranks' `losses`, each by its
        weight, and their number; 0.0 and 0 where nothing is predicted.
        """
        ...

    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        """Sum of a float64 array over all ranks, on every rank."""
        ...

    def barrier(self) -> None: ...

    def memory_bytes(self) -> int:
        """Peak memory of this rank: allocated on its GPU, or resident on the host."""
        ...

    def begin_save(
        self, directory: Path, *, with_optimizer: bool = True
    ) -> PendingSave:
        """Start writing weights, and optimizer state where there is one, into a begun
        checkpoint. One save at a time.
        """
        ...

    def load(self, directory: Path, *, with_optimizer: bool) -> None:
        """Load the `state` directory of a checkpoint, written under any layout.

        The weights are the most precise ones that it holds. Without the optimizer, moments
        and steps start afresh; constants are the configuration's either way. Raises
        CheckpointError, on all ranks alike, where it does not load into this model.
        """
        ...
