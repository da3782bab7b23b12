"""Answers -> scores by category -> the fourteen rows of ALIA-40b-fc's card.

Rows that join categories do so as `eval_runner_helper` of `bfcl-eval` does: "Simple
AST" outside of live is the plain mean over the three languages, irrelevance the plain
mean of both sets, and the summary of live is weighted by the numbers of cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any, Literal

from alia_ctx.evaluation.function_calling.answers import Answer, calls_of
from alia_ctx.evaluation.function_calling.cases import Case
from alia_ctx.evaluation.function_calling.checker import RIGHT, Verdict, check_calls
from alia_ctx.evaluation.function_calling.tools import FunctionNames, shown_name

NO_ANSWER = "no_answer"  # the reason of what does not fit, or is refused
_Z = 1.959963984540054  # the 97.5% quantile of the normal distribution
MULTI_TURN = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
_SIMPLE = ("simple_python", "simple_java", "simple_javascript")
_LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")


@dataclass(frozen=True)
class Row:
    """A row of the card: its categories, whose plain mean it is, and the card's figure
    for ALIA-40b-fc-2605, in percent.
    """

    name: str
    group: str
    categories: tuple[str, ...]
    card: float


ROWS = (
    Row("Simple AST", "Non-Live", _SIMPLE, 71.0),
    Row("Multiple AST", "Non-Live", ("multiple",), 94.5),
    Row("Parallel AST", "Non-Live", ("parallel",), 80.5),
    Row("Parallel Multiple AST", "Non-Live", ("parallel_multiple",), 81.5),
    Row("Simple AST", "Live", ("live_simple",), 74.8),
    Row("Multiple AST", "Live", ("live_multiple",), 74.4),
    Row("Parallel AST", "Live", ("live_parallel",), 56.3),
    Row("Parallel Multiple AST", "Live", ("live_parallel_multiple",), 70.8),
    Row("Base", "Multi-Turn", ("multi_turn_base",), 15.5),
    Row("Miss Func", "Multi-Turn", ("multi_turn_miss_func",), 2.0),
    Row("Miss Param", "Multi-Turn", ("multi_turn_miss_param",), 12.0),
    Row("Long Context", "Multi-Turn", ("multi_turn_long_context",), 7.0),
    Row("Relevance Detection", "Hallucination", ("live_relevance",), 81.3),
    Row(
        "Irrelevance Detection",
        "Hallucination",
        ("irrelevance", "live_irrelevance"),
        84.0,
    ),
)


@dataclass(frozen=True)
class Score:
    """Right answers of a category, of how many, and the reasons of the wrong ones.

    Args:
        fault: why the first question without an answer has none.
        version: of the benchmark's questions, where they are not those of the data.
    """

    right: int
    total: int
    reasons: tuple[tuple[str, int], ...] = ()
    fault: str = ""
    version: str = ""

    @property
    def unanswered(self) -> int:
        """Questions without an answer: they do not fit, or a server refuses them."""
        return dict(self.reasons).get(NO_ANSWER, 0)

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95%, by Wilson's formula (J. Am. Stat. Assoc. 22, 1927, 209)."""
        n, p = self.total, self.accuracy
        centre = (p + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
        half = _Z / (1 + _Z * _Z / n) * sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Joined:
    """A mean over categories: accuracy, 95% interval, and numbers of cases."""

    accuracy: float
    interval: tuple[float, float]
    right: int
    total: int

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
            "right": self.right,
            "total": self.total,
        }


def joined(
    scores: Mapping[str, Score],
    categories: Sequence[str],
    weights: Literal["equal", "cases"] = "equal",
) -> Joined | None:
    """The mean over categories; None where one is not measured.

    Its interval joins Wilson's intervals (p, low, high) of the parts: from each part's
    distance to its own bound, weighted and added as squares (MOVER: Zou and Donner,
    Stat. Med. 27, 2008, 1693). For one category it is Wilson's.
    """
    parts = [scores.get(name) for name in categories]
    known = [part for part in parts if part is not None and part.total]
    if len(known) < len(parts):
        return None
    total = sum(part.total for part in known)
    shares = [
        1 / len(known) if weights == "equal" else part.total / total for part in known
    ]
    mean = sum(s * part.accuracy for s, part in zip(shares, known, strict=True))
    down, up = (
        sqrt(
            sum(
                (s * (part.accuracy - part.interval[side])) ** 2
                for s, part in zip(shares, known, strict=True)
            )
        )
        for side in (0, 1)
    )
    interval = (max(0.0, mean - down), min(1.0, mean + up))
    return Joined(mean, interval, sum(part.right for part in known), total)


def rows(scores: Mapping[str, Score]) -> list[tuple[Row, Joined | None]]:
    """The card's rows in its order."""
    return [(row, joined(scores, row.categories)) for row in ROWS]


def summaries(scores: Mapping[str, Score]) -> dict[str, float | None]:
    """The benchmark's summaries of its groups; None where a part is not measured.

    Its overall figure is left out: 40% of it are agents that search the web and
    remember, which are not measured here.
    """
    simple = joined(scores, _SIMPLE)
    others = joined(scores, ("multiple", "parallel", "parallel_multiple"))
    live = joined(scores, _LIVE, "cases")
    turns = joined(scores, MULTI_TURN)
    both = simple is not None and others is not None
    return {
        "non_live_ast": (simple.accuracy + 3 * others.accuracy) / 4
        if both and simple and others
        else None,
        "live_ast": live.accuracy if live else None,
        "multi_turn": turns.accuracy if turns else None,
    }


def verdict_of(case: Case, answer: Answer, names: FunctionNames) -> Verdict:
    """The verdict on one answer."""
    if answer.fault:
        return Verdict(False, NO_ANSWER, answer.fault)
    calls = calls_of(answer).with_objects()
    if case.accepted is None:
        if bool(calls.calls) == case.wants_call:
            return RIGHT
        reason = "no_call" if case.wants_call else "call_not_wanted"
        return Verdict(False, reason, calls.broken)
    if calls.broken:
        return Verdict(False, "broken_call", calls.broken)
    if not calls.calls:
        return Verdict(False, "no_call")
    return check_calls(
        case.functions,
        calls.calls,
        case.accepted,
        case.language,
        rename=partial(shown_name, names=names),
    )


def score_answers(
    cases: Sequence[Case], answers: Mapping[str, Answer], names: FunctionNames
) -> dict[str, Score]:
    """Scores by category, of the cases that have an answer."""
    verdicts: dict[str, list[Verdict]] = {}
    for case in cases:
        if case.id in answers:
            verdict = verdict_of(case, answers[case.id], names)
            verdicts.setdefault(case.category, []).append(verdict)
    return {
        category: Score(
            sum(verdict.right for verdict in of_category),
            len(of_category),
            tuple(Counter(v.reason for v in of_category if not v.right).most_common()),
            next((v.detail for v in of_category if v.reason == NO_ANSWER), ""),
        )
        for category, of_category in verdicts.items()
    }
