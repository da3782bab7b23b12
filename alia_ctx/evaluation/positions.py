"""Loss by position within the document, with what is needed to say whether two models differ.

The position of a loss is that of its input token: the loss at position p predicts token
p+1 from p+1 tokens, so a base model of context C has all its own losses in [0, C). Sums
are kept per document, since tokens of one document
are far from independent: standard errors take documents, not tokens, as the samples.

Shape suffixes: T tokens of a row, P document pieces in it, B bands, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alia_ctx.errors import DataError
from alia_ctx.evaluation.evaluator import RowPieces

DocumentKey = tuple[int, int]
DEMO_EDGES = (
    0,
    128,
    1024,
    5120,
)  # the base context, x8, x40, as ALIA's 4,096 : 32,768 : 163,840


@dataclass(frozen=True)
class BandLoss:
    """Mean loss (nats per token) of the positions [start, stop); nan where nothing was
    predicted there. `standard_error` takes documents as the samples; None below two.
    """

    start: int
    stop: int
    loss: float
    tokens: int
    documents: int
    standard_error: float | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Loss of `second` minus loss of `first` (nats per token) over the documents that both
    have in a band.

    `standard_error` is that of the difference, with documents as clusters; nan below
    two documents (`known_error`). `unpaired` counts documents that only one of the two
    has there; they are left out.
    """

    first: float
    second: float
    standard_error: float
    documents: int
    tokens: tuple[int, int]
    unpaired: int

    @property
    def difference(self) -> float:
        return self.second - self.first


class PositionBands:
    """An `Evaluator`: sums and counts of losses by position, in bands (per document) and
    along a finer log-spaced curve.

    `edges` are the band limits in tokens, from 0 up; positions at or past the last edge
    are counted in `beyond` and left out. The curve has `per_octave` points for each
    doubling of the position. `sources` names the sources of documents by their number.
    """

    def __init__(
        self,
        edges: Sequence[int] = DEMO_EDGES,
        *,
        per_octave: int = 4,
        sources: Sequence[str] = (),
    ) -> None:
        self.sources = tuple(sources)
        self.edges = tuple(int(edge) for edge in edges)
        if len(self.edges) < 2 or self.edges[0] != 0 or any(np.diff(self.edges) <= 0):
            raise DataError(
                f"band edges {list(edges)} must start at 0 and rise, as in {list(DEMO_EDGES)}"
            )
        if per_octave < 1:
            raise DataError(
                f"per_octave={per_octave} must be at least 1; 4 gives a smooth curve"
            )
        self.per_octave = per_octave
        self.curve_edges = _curve_edges(self.edges[-1], per_octave)
        self._curve_sums = np.zeros(len(self.curve_edges) - 1)
        self._curve_counts = np.zeros(len(self.curve_edges) - 1, dtype=np.int64)
        self._documents: dict[
            DocumentKey, NDArray[np.float64]
        ] = {}  # [2, B]: sums, counts
        self.beyond = 0

    def add(
        self,
        row: RowPieces,
        losses_T: NDArray[np.floating[Any]],
        hits_T: NDArray[np.bool_] | None = None,
        *,
        position_offset: Sequence[int] | None = None,
    ) -> None:
        """Add one row's losses in nats, float [T], nan where nothing is predicted; hits are
        not counted.

        `position_offset` gives for each piece of the row [P] the position of its first
        token in the document, where that is not 0: a model that is shown a document in
        short blocks is so compared at equal positions. DataError: the shapes differ, a
        loss is infinite, or a fill token has a loss.
        """
        starts_P, positions_T = _positions(row, position_offset)
        losses_T = _checked_losses(row, losses_T)
        kept_T = ~np.isnan(losses_T)
        inside_T = positions_T < self.edges[-1]
        self.beyond += int(np.sum(kept_T & ~inside_T))
        kept_T &= inside_T
        losses, positions = losses_T[kept_T], positions_T[kept_T]
        self._add_curve(losses, positions)
        pieces = np.searchsorted(starts_P, np.flatnonzero(kept_T), side="right") - 1
        self._add_documents(row, pieces, losses, positions)

    def _add_curve(
        self, losses: NDArray[np.float64], positions: NDArray[np.int64]
    ) -> None:
        points = np.searchsorted(self.curve_edges, positions, side="right") - 1
        size = len(self._curve_sums)
        self._curve_sums += np.bincount(points, weights=losses, minlength=size)
        self._curve_counts += np.bincount(points, minlength=size)

    def _add_documents(
        self,
        row: RowPieces,
        pieces: NDArray[np.int64],
        losses: NDArray[np.float64],
        positions: NDArray[np.int64],
    ) -> None:
        bands = len(self.edges) - 1
        cells = (
            pieces * bands + np.searchsorted(self.edges, positions, side="right") - 1
        )
        shape_PB = (len(row.doc_ids), bands)
        size = shape_PB[0] * bands
        sums_PB = np.bincount(cells, weights=losses, minlength=size).reshape(shape_PB)
        counts_PB = np.bincount(cells, minlength=size).reshape(shape_PB)
        for piece, (source, document) in enumerate(
            zip(row.sources.tolist(), row.doc_ids.tolist(), strict=True)
        ):
            if counts_PB[piece].any():
                self._document((source, document))[:] += (
                    sums_PB[piece],
                    counts_PB[piece],
                )

    def _document(self, key: DocumentKey) -> NDArray[np.float64]:
        return self._documents.setdefault(key, np.zeros((2, len(self.edges) - 1)))

    def merge(self, other: PositionBands) -> None:
        """Add all that `other` holds, as when ranks or files were evaluated apart."""
        if (self.edges, self.per_octave) != (other.edges, other.per_octave):
            raise DataError(
                f"cannot merge losses by position with edges {other.edges} into edges {self.edges}"
            )
        self._curve_sums += other._curve_sums
        self._curve_counts += other._curve_counts
        self.beyond += other.beyond
        for key, sums_and_counts in other._documents.items():
            self._document(key)[:] += sums_and_counts

    @property
    def documents(self) -> int:
        """Number of documents with at least one predicted token."""
        return len(self._documents)

    @property
    def tokens(self) -> int:
        """Number of predicted tokens inside the bands."""
        return int(self._curve_counts.sum())

    def bands(self) -> tuple[BandLoss, ...]:
        """The mean loss of each band, in order of position."""
        return tuple(self.band(start, stop) for start, stop in pairwise(self.edges))

    def band(self, start: int, stop: int, source: int | None = None) -> BandLoss:
        """The mean loss of [start, stop), both of which must be edges; of one source alone
        where its number is given.
        """
        keys, values_D2 = self.per_document(start, stop)
        if source is not None:
            values_D2 = values_D2[[key[0] == source for key in keys]]
        count = len(values_D2)
        if not count:
            return BandLoss(start, stop, math.nan, 0, 0)
        mean, influence_D = _ratio(values_D2)
        error = _clustered_error(influence_D) if count > 1 else None
        return BandLoss(start, stop, mean, int(values_D2[:, 1].sum()), count, error)

    def by_source(self) -> dict[str, tuple[BandLoss, ...]]:
        """The bands of each source that has a name and documents."""
        present = {source for source, _ in self._documents}
        return {
            name: tuple(self.band(a, b, number) for a, b in pairwise(self.edges))
            for number, name in enumerate(self.sources)
            if number in present
        }

    def per_document(
        self, start: int, stop: int
    ) -> tuple[list[DocumentKey], NDArray[np.float64]]:
        """(document keys, [D, 2] sums and counts) of [start, stop), for documents with
        predicted tokens there.
        """
        if start not in self.edges or stop not in self.edges or start >= stop:
            raise DataError(
                f"[{start}, {stop}) does not lie between band edges; the edges are "
                f"{list(self.edges)}"
            )
        first, last = self.edges.index(start), self.edges.index(stop)
        totals = {
            key: array[:, first:last].sum(axis=1)
            for key, array in sorted(self._documents.items())
        }
        kept = {key: total for key, total in totals.items() if total[1] > 0}
        return list(kept), np.array(list(kept.values())).reshape(-1, 2)

    def curve(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """(position, mean loss, tokens) of the curve's points. The position is the middle
        of the point's range.
        """
        seen = self._curve_counts > 0
        middles = (self.curve_edges[:-1] + self.curve_edges[1:] - 1) / 2
        return (
            middles[seen],
            self._curve_sums[seen] / self._curve_counts[seen],
            self._curve_counts[seen],
        )

    def to_json(self) -> dict[str, Any]:
        """All that this holds, in JSON's types; `from_json` reads it back."""
        named = {"sources": list(self.sources)} if self.sources else {}
        return {
            **named,
            "edges": list(self.edges),
            "per_octave": self.per_octave,
            "beyond": self.beyond,
            "curve": {
                "sums": self._curve_sums.tolist(),
                "counts": self._curve_counts.tolist(),
            },
            "documents": [
                {
                    "source": key[0],
                    "document": key[1],
                    "sums": array[0].tolist(),
                    "counts": array[1].astype(int).tolist(),
                }
                for key, array in sorted(self._documents.items())
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PositionBands:
        """The inverse of `to_json`; DataError where the data is of another form."""
        try:
            names = data.get("sources", ())
            made = cls(data["edges"], per_octave=data["per_octave"], sources=names)
            made.beyond = int(data["beyond"])
            made._curve_sums[:] = data["curve"]["sums"]
            made._curve_counts[:] = data["curve"]["counts"]
            for entry in data["documents"]:
                made._document((entry["source"], entry["document"]))[:] = (
                    entry["sums"],
                    entry["counts"],
                )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not losses by position as `to_json` writes them: {error!r}"
            ) from error
        return made


def paired_difference(
    first: PositionBands, second: PositionBands, start: int, stop: int
) -> PairedDifference:
    """Compare two models over the documents that both have in [start, stop).

    Each mean is a ratio of sums over documents; the standard error of their difference
    is that of the linearised ratios, clustered by document (Cochran, Sampling
    Techniques, 3rd ed., section 6.19), so documents that are hard for both models
    cancel. The two may have predicted slightly different tokens of a document.
    """
    keys_first, values_first = first.per_document(start, stop)
    keys_second, values_second = second.per_document(start, stop)
    common = set(keys_first) & set(keys_second)
    a_D2 = values_first[[key in common for key in keys_first]]
    b_D2 = values_second[[key in common for key in keys_second]]
    unpaired = len(keys_first) + len(keys_second) - 2 * len(common)
    if not common:
        return PairedDifference(math.nan, math.nan, math.nan, 0, (0, 0), unpaired)
    mean_a, influence_a = _ratio(a_D2)
    mean_b, influence_b = _ratio(b_D2)
    return PairedDifference(
        mean_a,
        mean_b,
        _clustered_error(influence_b - influence_a),
        len(common),
        (int(a_D2[:, 1].sum()), int(b_D2[:, 1].sum())),
        unpaired,
    )


def _ratio(values_D2: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Mean loss per token, and each document's influence on it."""
    total, count = values_D2.sum(axis=0)
    mean = float(total / count)
    return mean, (values_D2[:, 0] - mean * values_D2[:, 1]) / count


def _clustered_error(influence_D: NDArray[np.float64]) -> float:
    """The standard error of a mean over documents, from each one's influence on it."""
    count = len(influence_D)
    spread = float(np.sum(influence_D**2))
    return math.sqrt(spread * count / (count - 1)) if count > 1 else math.nan


def _curve_edges(last: int, per_octave: int) -> NDArray[np.int64]:
    steps = np.arange(math.ceil(math.log2(max(last, 2)) * per_octave) + 1)
    edges = np.round(2.0 ** (steps / per_octave)).astype(np.int64)
    return np.unique(np.concatenate([[0], edges[edges < last], [last]]))


def _positions(
    row: RowPieces, position_offset: Sequence[int] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(starts of the pieces [P], position within the document [T]). The fill's positions
    mean nothing.
    """
    starts_P = np.asarray(row.doc_offsets[:-1], dtype=np.int64)
    offset_P = (
        np.zeros_like(starts_P)
        if position_offset is None
        else np.asarray(position_offset, dtype=np.int64)
    )
    if offset_P.shape != starts_P.shape or (offset_P < 0).any():
        raise DataError(
            f"position_offset needs one number >= 0 for each of the row's {len(starts_P)} pieces"
        )
    real = int(row.doc_offsets[-1])
    positions_T = np.arange(row.length, dtype=np.int64)
    positions_T[:real] -= np.repeat(starts_P - offset_P, np.diff(row.doc_offsets))
    return starts_P, positions_T


def _checked_losses(
    row: RowPieces, given_T: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    losses_T: NDArray[np.float64] = np.asarray(given_T, dtype=np.float64)
    if losses_T.shape != (row.length,):
        raise DataError(
            f"losses of shape {losses_T.shape} for a row of {row.length} tokens"
        )
    if np.isinf(losses_T).any():
        raise DataError(
            f"the loss at token {int(np.flatnonzero(np.isinf(losses_T))[0])} of the row is infinite"
        )
    if not np.isnan(losses_T[int(row.doc_offsets[-1]) :]).all():
        raise DataError(
            "a fill token has a loss; where nothing is predicted the loss must be nan"
        )
    return losses_T
