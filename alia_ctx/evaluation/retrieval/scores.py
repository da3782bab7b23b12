"""Scores of retrieval samples, from hits: which tokens a greedy reader would have written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval.samples import Sample

# Depths are counted in tenths of the haystack; tasks about all of it have none.
DEPTHS = 10
Cell = tuple[str, str, int, int]
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """`right` of `samples` answered whole; `parts_right` of `parts` single answers.

    A part counts as right where the answers before it were given as they should be: of
    tasks with one answer the two are the same, of others `parts` is the kinder number
    (RULER's own gives part marks too).
    """

    samples: int
    right: int
    parts: int
    parts_right: int

    @property
    def share(self) -> float:
        """Samples answered whole, 0 to 1; nan without samples."""
        return self.right / self.samples if self.samples else math.nan

    @property
    def part_share(self) -> float:
        return self.parts_right / self.parts if self.parts else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of `share` (E. B. Wilson, JASA 22, 1927)."""
        n, p = self.samples, self.share
        if not n:
            return math.nan, math.nan
        middle = p + _Z95**2 / (2 * n)
        spread = _Z95 * math.sqrt(p * (1 - p) / n + _Z95**2 / (4 * n * n))
        scale = 1 + _Z95**2 / n
        return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def depth_of(sample: Sample) -> int:
    """The tenth of the haystack that hides a sample's one fact; -1 where there are more."""
    if len(sample.depths) != 1:
        return -1
    return min(DEPTHS - 1, int(sample.depths[0] * DEPTHS))


class RetrievalScores:
    """Counts of right answers by task, language, length and depth.

    Knows an answer from `hits`: whether the token that stands next in the row is the
    one that a greedy reader would write. While all are, its text is the row's; so the
    answer is right exactly when all of its tokens are hits.
    """

    def __init__(self) -> None:
        self._cells: dict[Cell, np.ndarray] = {}  # samples, right, parts, parts right

    def add(self, sample: Sample, hits_T: np.ndarray) -> None:
        """Add one sample: `hits_T` bool [length], at t for the token at t + 1.

        DataError where it is of another length: an answer that was cut off is no wrong answer.
        """
        if hits_T.shape != sample.tokens.shape:
            raise DataError(
                f"{sample.task}: hits of shape {hits_T.shape} for a sample of "
                f"{len(sample.tokens)} tokens"
            )
        first, last = sample.answer
        parts = [bool(hits_T[a - 1 : b - 1].all()) for a, b in sample.answers]
        cell = (sample.task, sample.language, len(sample.tokens), depth_of(sample))
        self.count(cell, bool(hits_T[first - 1 : last - 1].all()), parts)

    def count(self, cell: Cell, whole: bool, parts: Sequence[bool]) -> None:
        """Add one sample: whether its answer, and each part of it, was right."""
        self._counts(cell)[:] += (1, whole, len(parts), sum(parts))

    def join(self, other: RetrievalScores) -> None:
        """Add what `other` measured and this did not: of what both did, these are the same
        samples, seeded by task, language and length, and more of them hold the fewer.
        """
        for cell, counts in other._cells.items():
            mine = self._counts(cell)
            if counts[0] > mine[0]:
                mine[:] = counts

    def _counts(self, cell: Cell) -> np.ndarray:
        return self._cells.setdefault(cell, np.zeros(4, np.int64))

    def merge(self, other: RetrievalScores) -> None:
        """Add all that `other` holds, as when ranks scored different samples."""
        for cell, counts in other._cells.items():
            self._counts(cell)[:] += counts

    def score(
        self,
        task: str | None = None,
        length: int | None = None,
        language: str | None = None,
        depth: int | None = None,
    ) -> Score:
        """The score over all cells that agree with the arguments given."""
        wanted = (task, language, length, depth)
        total = np.zeros(4, np.int64)
        for cell, counts in self._cells.items():
            if all(w is None or w == c for w, c in zip(wanted, cell, strict=True)):
                total += counts
        return Score(*total.tolist())

    def score_farther(self, distance: int, length: int) -> Score:
        """The score of what is hidden at least `distance` tokens before the end of rows of
        `length`: of the tenths that lie before that whole.
        """
        total = np.zeros(4, np.int64)
        for (_, _, tokens, depth), counts in self._cells.items():
            nearest = tokens - tokens * (depth + 1) // DEPTHS
            if tokens == length and depth >= 0 and nearest >= distance:
                total += counts
        return Score(*total.tolist())

    @property
    def tasks(self) -> list[str]:
        return sorted({cell[0] for cell in self._cells})

    @property
    def languages(self) -> list[str]:
        return sorted({cell[1] for cell in self._cells})

    @property
    def lengths(self) -> list[int]:
        return sorted({cell[2] for cell in self._cells})

    def to_json(self) -> dict[str, Any]:
        """All that this holds, in JSON's types; `from_json` reads it back."""
        names = (
            "task",
            "language",
            "length",
            "depth",
            "samples",
            "right",
            "parts",
            "parts_right",
        )
        cells = [
            dict(zip(names, (*cell, *counts.tolist()), strict=True))
            for cell, counts in sorted(self._cells.items())
        ]
        return {"depths": DEPTHS, "cells": cells}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RetrievalScores:
        """The inverse of `to_json`; DataError where the data is of another form."""
        made = cls()
        try:
            for c in data["cells"]:
                cell = (
                    str(c["task"]),
                    str(c["language"]),
                    int(c["length"]),
                    int(c["depth"]),
                )
                counts = (c["samples"], c["right"], c["parts"], c["parts_right"])
                made._counts(cell)[:] += np.array(counts, np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not retrieval scores as `to_json` writes them: {error!r}"
            ) from error
        return made
