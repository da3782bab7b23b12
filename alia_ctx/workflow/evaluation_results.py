"""Evaluations and what they found, as the lines of the tables have them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.identity import statement
from alia_ctx.workflow.evaluated_models import EvaluatedModel


class Role(enum.Enum):
    """What an evaluation is in the report's comparison."""

    BASE = "the base at its own context"
    BASE_GIVEN_LONGER = "the base, given the longest input"
    STAGE = "a stage at its own context"
    ASKED_FOR = "outside the comparison"
    CONTROL = "the base at its own context, beside what was asked for"


@dataclass(frozen=True)
class Evaluation:
    """A model, shown `context` tokens at a time, by some evaluators: a line of the tables."""

    name: str
    model: EvaluatedModel
    context: int
    evaluators: tuple[str, ...] = ("positions",)
    role: Role = Role.ASKED_FOR


@dataclass(frozen=True)
class Result:
    """What one evaluator found: `content` is None where it had nothing to measure, and
    `reason` says why; `refused` where the model could not be read or run.
    """

    evaluation: Evaluation
    evaluator: str
    made_from: Mapping[str, Any]
    content: Mapping[str, Any] | None
    reason: str | None = None
    refused: bool = False


@dataclass(frozen=True)
class Evaluated:
    """Results in the order of the tables, the base first."""

    results: tuple[Result, ...]
    native: int
    has_base: bool = True
    notes: tuple[str, ...] = ()

    def of(self, evaluator: str) -> list[Result]:
        """What an evaluator measured, in the order of the tables."""
        return [r for r in self.results if r.evaluator == evaluator and r.content]

    @property
    def refused(self) -> bool:
        """Whether a model could not be measured."""
        return any(result.refused for result in self.results)

    def positions(self) -> dict[str, PositionBands]:
        """Losses by position, by name of the evaluation."""
        return {
            r.evaluation.name: PositionBands.from_json(r.content or {})
            for r in self.of("positions")
        }

    def to_json(self) -> dict[str, Any]:
        """All results, each with what it was made from, in JSON's types."""
        return {
            "native_context": self.native,
            "notes": list(self.notes),
            "results": [
                {
                    "name": r.evaluation.name,
                    "evaluator": r.evaluator,
                    "made_from": statement(r.made_from),
                    "content": statement(r.content),
                    "reason": r.reason,
                }
                for r in self.results
            ],
        }
