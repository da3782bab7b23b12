"""Choices ranked by losses on the same documents, over several seeds, with errors.

The difference of two choices is paired twice: by document, since both read the same
text, and by seed, since cells of one seed share their data and their start. Its standard
error is that of the mean over seeds (documents being the same for all seeds, they are no
independent draws of it); with a single seed, or several that make no difference, it is
that over documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.evaluation.positions import PositionBands, paired_difference
from alia_ctx.evaluation.standard_errors import known_error


@dataclass(frozen=True)
class Ranked:
    """A choice over positions [start, stop): mean loss in nats a token over the seeds, and
    how far it is above the best choice, ± standard error (None where it is not known:
    one document, or all alike).
    """

    name: str
    start: int
    stop: int
    loss: float
    behind: float
    error: float | None
    seeds: int
    documents: int

    @property
    def is_clear(self) -> bool:
        """Whether it is behind by more than two standard errors."""
        return self.error is not None and self.behind > 2 * self.error


def ranked(
    cells: Mapping[str, Sequence[PositionBands]], start: int, stop: int
) -> list[Ranked]:
    """The choices from the lowest loss at positions [start, stop) up; `cells` has for each
    choice a result a seed, in the order of the seeds. DataError where one has no token
    there.
    """
    for name, seeds in cells.items():
        if not all(one.band(start, stop).tokens for one in seeds):
            raise DataError(
                f"{name}: no token was predicted at positions {start:,} to {stop - 1:,}; "
                "give longer held-out documents under evaluation.held_out"
            )
    means = {
        name: float(np.mean([one.band(start, stop).loss for one in seeds]))
        for name, seeds in cells.items()
    }
    order = sorted(means, key=means.__getitem__)
    best = cells[order[0]]
    out = []
    for name in order:
        behind, error, documents = _behind(best, cells[name], start, stop)
        count = len(cells[name])
        out.append(
            Ranked(name, start, stop, means[name], behind, error, count, documents)
        )
    return out


def _behind(
    best: Sequence[PositionBands], other: Sequence[PositionBands], start: int, stop: int
) -> tuple[float, float | None, int]:
    pairs = [
        paired_difference(a, b, start, stop) for a, b in zip(best, other, strict=True)
    ]
    values = np.array([pair.difference for pair in pairs])
    if best is other:
        return 0.0, 0.0, pairs[0].documents
    error = None
    if len(values) > 1:
        error = known_error(float(values.std(ddof=1)) / math.sqrt(len(values)))
    if error is None:  # seeds without any spread are one draw, as a single one is
        error = known_error(pairs[0].standard_error)
    return float(values.mean()), error, pairs[0].documents


def bands_of(cells: Mapping[str, Sequence[PositionBands]]) -> list[tuple[int, int]]:
    """The whole, then each band, of results with the same edges: of the bands in which
    every result has tokens. Text that is shorter than the last edge has none beyond it.
    """
    results = [one for seeds in cells.values() for one in seeds]
    bands = list(pairwise(results[0].edges))
    measured = [
        band for band in bands if all(one.band(*band).tokens for one in results)
    ]
    bands = measured or bands
    whole = (bands[0][0], bands[-1][1])
    return [whole, *(bands if len(bands) > 1 else [])]
