"""What is measured of a run: on which text, by which evaluators, when, and what is best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from alia_ctx.data.documents import SourceSpec
from alia_ctx.errors import Problem, Problems

EvaluatorName = Literal[
    "positions", "blocks", "longppl", "retrieval", "passkey", "leak"
]
TaskName = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
]
# Tasks that hide their needles in text, where `retrieval.haystack` says so.
TASKS_IN_TEXT: tuple[TaskName, ...] = (
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multivalue",
    "niah_multiquery",
)
LanguageName = Literal["en", "es", "ca", "eu", "gl"]
MetricName = Literal[
    "loss",
    "short_loss",
    "far_loss",
    "long_ppl",
    "retrieval",
    "passkey",
    "conversation_loss",
    "calls_exact",
]

# Metric -> the evaluator that it is of; None where it is of the conversations that a
# stage holds out (`pack.held_out_instances`).
METRICS: dict[str, str | None] = {
    "loss": "positions",
    "short_loss": "positions",
    "far_loss": "positions",
    "long_ppl": "longppl",
    "retrieval": "retrieval",
    "passkey": "passkey",
    "conversation_loss": None,
    "calls_exact": None,
}

SCORES = ("retrieval", "passkey", "calls_exact")  # shares of what was asked


@dataclass(frozen=True)
class RetrievalConfig:
    """Which of RULER's task forms (default: all 13), in which languages, how many samples
    of each, and what hides the needles: the held-out text, or noise. `digits`: of the
    numbers that are to be found; RULER's have 7, small models manage fewer.
    """

    tasks: list[TaskName] | None = None
    languages: list[LanguageName] = field(default_factory=lambda: ["en"])
    samples: int = 8
    haystack: Literal["text", "noise"] = "text"
    digits: int = 7


@dataclass(frozen=True)
class BestConfig:
    """By what the best checkpoint of a stage is known, at its own context; kept beside
    the last ones. `mode`: min or max; by default losses are to fall and scores to rise.

    loss: over all positions; short_loss: within the context of the chain's base (of
    its first stage where that starts from random weights); far_loss: past the context of
    the stage before, or of the base; conversation_loss, calls_exact: of the
    conversations that a stage holds out.
    """

    metric: MetricName
    mode: Literal["min", "max"] | None = None

    @property
    def direction(self) -> Literal["min", "max"]:
        return self.mode or ("max" if self.metric in SCORES else "min")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation: from which text, how many documents, and by which evaluators:
    `measure` after training, `during` each `every_updates` of it (0: never).
    `position_edges`: limits of position bands beside the contexts of base and stages.
    """

    held_out: SourceSpec | None = None
    documents: int = 64
    every_updates: int = 0
    measure: list[EvaluatorName] = field(
        default_factory=lambda: ["positions", "blocks"]
    )
    during: list[EvaluatorName] = field(default_factory=lambda: ["positions"])
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    best: BestConfig | None = None
    position_edges: list[int] = field(default_factory=list)

    @property
    def during_on_text(self) -> list[str]:
        """What of `during` cannot be measured without held-out text: losses, and needles
        that text hides.
        """
        needs = {"positions", "blocks", "longppl"}
        tasks = self.retrieval.tasks or TASKS_IN_TEXT
        if self.retrieval.haystack == "text" and set(tasks) & set(TASKS_IN_TEXT):
            needs.add("retrieval")
        return [name for name in self.during if name in needs]

    def problems(self, key: str = "evaluation") -> list[Problem]:
        """What its values break."""
        problems = Problems()
        for name, value in {
            "documents": self.documents,
            "retrieval.samples": self.retrieval.samples,
        }.items():
            remedy = "the default is 64" if name == "documents" else "the default is 8"
            problems.need(value > 0, f"{key}.{name}", value, "must be above 0", remedy)
        problems.need(
            all(edge > 0 for edge in self.position_edges),
            f"{key}.position_edges",
            self.position_edges,
            "must be above 0",
            "positions count from 0, which is a limit already",
        )
        problems.need(
            1 <= self.retrieval.digits <= 18,
            f"{key}.retrieval.digits",
            self.retrieval.digits,
            "must be from 1 to 18",
            "the default is 7",
        )
        every, remedy = self.every_updates, "0 is never"
        problems.need(
            every >= 0, f"{key}.every_updates", every, "must not be negative", remedy
        )
        for name, values in {
            "retrieval.tasks": self.retrieval.tasks,
            "retrieval.languages": self.retrieval.languages,
        }.items():
            remedy = "name one, or leave it out for the default"
            problems.need(values != [], f"{key}.{name}", "[]", "is empty", remedy)
        listed: dict[str, Sequence[str]] = {
            "retrieval.tasks": self.retrieval.tasks or [],
            "retrieval.languages": self.retrieval.languages,
            "measure": self.measure,
            "during": self.during,
        }
        for name, named in listed.items():
            # Measured twice they would be counted as twice as many samples.
            twice = sorted(n for n, count in Counter(named).items() if count > 1)
            problems.need(
                not twice,
                f"{key}.{name}",
                ", ".join(named),
                f"names {', '.join(twice)} more than once",
                "name each once",
            )
        problems.need(
            "positions" in self.measure,
            f"{key}.measure",
            self.measure,
            "lacks positions, by which the report compares",
            "add positions",
        )
        problems += self._best_problems(f"{key}.best")
        return problems

    def _best_problems(self, key: str) -> list[Problem]:
        problems = Problems()
        if self.best is None:
            return problems
        problems.need(
            self.every_updates > 0,
            key,
            self.best.metric,
            "is measured while training, and evaluation.every_updates is 0",
            "set evaluation.every_updates",
        )
        needed = METRICS[self.best.metric]
        problems.need(
            needed is None or needed in self.during,
            f"{key}.metric",
            self.best.metric,
            f"is of the evaluator {needed}, which evaluation.during does not name",
            f"add {needed} to evaluation.during",
        )
        return problems
