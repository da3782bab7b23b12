"""The numbers of an update: losses by group, speed, spikes, and whose documents they are of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from alia_ctx.data.packing import PackedRow
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.engine import Engine, RowLosses, UpdateResult


class StageMetrics:
    """The arithmetic of a stage's metrics.

    Args:
        model, context: what is trained, and the tokens of a row.
        edges: limits of the bands of the position in the document that losses are
            reported in.
        sources: names of the plan's sources, in its order.
        peak_flops: floating-point operations that one rank could do a second, at best.
    """

    def __init__(
        self,
        model: ModelSpec,
        context: int,
        edges: Sequence[int],
        sources: Sequence[str],
        peak_flops: float,
    ) -> None:
        self.model, self.context = model, context
        self.edges, self.sources = tuple(edges), tuple(sources)
        self.peak_flops = peak_flops
        self._spikes = SpikeDetector()

    def flops(
        self, attention_pairs: np.ndarray, places: np.ndarray | None = None
    ) -> list[float]:
        """FLOPs of rows with so many visible query-key pairs each, and so many places for
        tokens (default: the context), fill included: what balancing makes even over the
        data-parallel ranks.
        """
        tokens = self.context if places is None else places
        linear = self.model.linear_flops_per_token() * tokens
        return list(linear + self.model.attention_flops([1]) * attention_pairs)

    def useful_flops(self, rows: Sequence[PackedRow]) -> float:
        """FLOPs that the tokens of rows need. Fill, which is computed with them, needs none."""
        tokens = sum(row.real_tokens for row in rows)
        attention = sum(
            self.model.attention_flops(np.diff(row.doc_offsets).tolist())
            for row in rows
        )
        return self.model.linear_flops_per_token() * tokens + attention

    def remember(self, losses: Iterable[float]) -> None:
        """Take these losses for those of the updates before, as after a resume."""
        for loss in losses:
            self._spikes.is_spike(loss)

    def results(self, engine: Engine, result: UpdateResult) -> dict[str, Any]:
        """What the update did, its losses by position and source summed over ranks.
        Collective.
        """
        return {
            "loss": result.loss,
            "gradient_norm": result.gradient_norm,
            "applied": result.applied,
            # The loss of an update that predicts nothing is 0, and nobody's loss.
            "spike": self._spikes.is_spike(
                result.loss if result.predicted_tokens else math.nan
            ),
            "predicted_tokens": result.predicted_tokens,
            "memory_gib": engine.memory_bytes() / 2**30,
            **self._grouped(engine, result.losses),
        }

    def _grouped(
        self, engine: Engine, losses: Sequence[RowLosses]
    ) -> dict[str, dict[str, float]]:
        grouped = GroupedLoss(self.edges, self.sources)
        for part in losses:
            grouped.add(part.row.doc_offsets, part.row.sources, part.as_row())
        return grouped.means(engine.sum_over_ranks(grouped.values))

    def speed(
        self, seconds: float, tokens: int, flops: float, ranks: int
    ) -> dict[str, float]:
        """Tokens a second, and the share of the peak that went into the model's FLOPs:
        `mfu` by `useful_flops`, `mfu_6n` by 6 x parameters x tokens.
        """
        peak = self.peak_flops * ranks
        return {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_rank": tokens / seconds / ranks,
            "mfu": flops / seconds / peak,
            "mfu_6n": 6.0 * self.model.parameters() * tokens / seconds / peak,
        }


def documents_of(rows: Sequence[PackedRow], sources: Sequence[str]) -> list[str]:
    """A line for each row with its first eight documents, as source/number."""
    lines = []
    for row in rows:
        documents = [
            f"{sources[source]}/{document}"
            for source, document in zip(row.sources[:8], row.doc_ids[:8], strict=True)
        ]
        more = f" and {len(row.doc_ids) - 8} more" if len(row.doc_ids) > 8 else ""
        lines.append(f"row {row.index}: {', '.join(documents)}{more}")
    return lines


class GroupedLoss:
    """Sums of losses by position band and by source, as one vector that ranks can add up.

    `edges` bound the bands of the position within the document piece; positions past
    the last edge fall into the last band.
    """

    def __init__(self, edges: Sequence[int], sources: Sequence[str]) -> None:
        self.edges, self.sources = tuple(edges), tuple(sources)
        self._bands = [
            f"{a}-{b - 1}" for a, b in zip(self.edges, self.edges[1:], strict=False)
        ]
        self.values = np.zeros((len(self._bands) + len(self.sources), 2))

    def add(
        self, doc_offsets: np.ndarray, sources: np.ndarray, losses: np.ndarray
    ) -> None:
        """`losses` fp32 [T] of one row, NaN where nothing is predicted here."""
        kept = np.flatnonzero(np.isfinite(losses))
        piece = np.searchsorted(doc_offsets, kept, side="right") - 1
        band = np.searchsorted(self.edges, kept - doc_offsets[piece], side="right") - 1
        self._count(np.minimum(band, len(self._bands) - 1), losses[kept], 0)
        self._count(sources[piece], losses[kept], len(self._bands))

    def _count(self, group: np.ndarray, losses: np.ndarray, first: int) -> None:
        size = len(self.values) - first
        self.values[first:, 0] += np.bincount(group, weights=losses, minlength=size)
        self.values[first:, 1] += np.bincount(group, minlength=size)

    def means(self, totals: np.ndarray) -> dict[str, dict[str, float]]:
        """Mean losses by name of `totals`, the sum of all ranks' `values`. Groups without
        tokens are left out.
        """
        named = [
            *(("position", band) for band in self._bands),
            *(("source", source) for source in self.sources),
        ]
        out: dict[str, dict[str, float]] = {"position": {}, "source": {}}
        for (axis, name), (total, count) in zip(named, totals, strict=True):
            if count:
                out[axis][name] = total / count
        return {f"loss_by_{axis}": values for axis, values in out.items()}


class SpikeDetector:
    """Flags a loss that is far above those before it: more than `height` standard
    deviations of the last `window`.
    """

    def __init__(self, window: int = 64, height: float = 6.0, least: int = 16) -> None:
        self.window, self.height, self.least = window, height, least
        self._losses: list[float] = []

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is one; remembers it."""
        recent = np.array(self._losses[-self.window :])
        spike = False
        if len(recent) >= self.least and math.isfinite(loss):
            spike = bool(
                loss
                > recent.mean()
                + self.height * max(recent.std(), 1e-3 * abs(recent.mean()))
            )
        if math.isfinite(loss):
            self._losses = [*self._losses[-self.window :], loss]
        return spike
