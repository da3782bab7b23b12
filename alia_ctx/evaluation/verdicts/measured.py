"""Lines of the tables, and what of them is spoken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.retrieval import RetrievalScores
from alia_ctx.evaluation.standard_errors import known_error


@dataclass(frozen=True)
class Measured:
    """A line of the tables: a model at a context, and what evaluators found, by name of the
    evaluator. `text` tells which tokens its losses are of.
    """

    name: str
    model: str
    context: int
    contents: Mapping[str, Mapping[str, Any]]
    text: str | None = None

    @property
    def positions(self) -> PositionBands | None:
        content = self.contents.get("positions")
        return None if content is None else PositionBands.from_json(content)


def longest(lines: Sequence[Measured], evaluator: str) -> Measured | None:
    """The line of the longest context that an evaluator measured."""
    measured = [line for line in lines if evaluator in line.contents]
    return max(measured, key=lambda line: line.context, default=None)


@dataclass(frozen=True)
class Gain:
    """What far context brings at positions [first, last), in nats a token, the mean over
    documents with its standard error (None where none is known); against blocks of
    `block` tokens.
    """

    first: int
    last: int
    documents: int
    gain: float
    error: float | None
    block: int

    @property
    def times(self) -> float | None:
        """The gain in standard errors; None where none is known."""
        return None if self.error is None else self.gain / self.error


def far_gains(line: Measured) -> list[Gain]:
    """Of `blocks`, the bands past the first block, within which both sides see the same,
    and up to what the model was shown: past that it has not all before.
    """
    content = line.contents["blocks"]
    block, shown = content["block"], content.get("shown", line.context)
    return [
        Gain(
            band["first"],
            band["last"],
            band["documents"],
            band["gain"],
            known_error(band["standard_error"]) if band["documents"] > 1 else None,
            block,
        )
        for band in content["bands"]
        if band["documents"] and block <= band["first"] < shown
    ]


def by_length(
    lines: Sequence[Measured], evaluator: str
) -> list[tuple[int, Measured, RetrievalScores]]:
    """Each length once, from the shortest context that has it: the grid of every context
    has the lengths below it too.
    """
    chosen: dict[int, tuple[int, Measured, RetrievalScores]] = {}
    for line in sorted(lines, key=lambda line: line.context):
        content = line.contents.get(evaluator)
        if content is None:
            continue
        scores = RetrievalScores.from_json(content)
        for length in scores.lengths:
            chosen.setdefault(length, (length, line, scores))
    return [chosen[length] for length in sorted(chosen)]
