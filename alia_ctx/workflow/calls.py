"""Models asked BFCL's questions: answers kept as they come, scored, and put in a table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from alia_ctx.evaluation.function_calling import (
    Answer,
    AnswerLedger,
    Case,
    CaseSet,
    Score,
    score_answers,
    summaries,
)
from alia_ctx.evaluation.function_calling.scores import rows
from alia_ctx.files import checksum, exclusive, write_json
from alia_ctx.identity import sealed
from alia_ctx.workflow.call_conversations import FOLDER, BenchmarkProgram
from alia_ctx.workflow.call_writer import CallSettings

SCORES = "scores.json"
_LONGEST_NAME = (
    200  # in bytes; file systems allow 255, with what is put before and behind
)


class AnsweringModel(Protocol):
    """What answers: by transformers (`TransformersModel`) or served (`EndpointModel`).

    may_change: whether what it refuses it may answer the next time, under the same
        statement.
    notes: what a reader of its scores has to know.
    """

    name: str
    template: str
    statement: dict[str, Any]
    may_change: bool
    notes: tuple[str, ...]

    def answers(self, cases: Sequence[Case]) -> Iterator[list[tuple[str, Answer]]]: ...

    def refusal(self) -> str: ...

    def serving(self) -> AbstractContextManager[str]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ScoredModel:
    """A model's scores, by category, and where its answers are kept.

    Args:
        cut: answers that were still going on at their last token.
        no_room: those among them that the end of the context cut.
        asked: how many were written now; the others were there.
        notes: what a reader has to know.
    """

    name: str
    template: str
    scores: dict[str, Score]
    directory: Path
    cut: int
    no_room: int
    asked: int
    notes: tuple[str, ...] = ()

    @property
    def unanswered(self) -> dict[str, int]:
        """Questions that have no answer, and count as wrong, by category."""
        counts = {name: score.unanswered for name, score in self.scores.items()}
        return {name: count for name, count in counts.items() if count}

    @property
    def fault(self) -> str:
        """Why the first of them has none."""
        return next((score.fault for score in self.scores.values() if score.fault), "")

    def to_json(self) -> dict[str, Any]:
        """Rows in the card's order, categories with counts and reasons, summaries."""
        return {
            "model": self.name,
            "template": self.template,
            "rows": [
                {
                    "metric": row.name,
                    "category": row.group,
                    "card_percent": row.card,
                    **(value.to_json() if value else {"accuracy": None}),
                }
                for row, value in rows(self.scores)
            ],
            "categories": {
                name: {
                    "accuracy": score.accuracy,
                    "right": score.right,
                    "total": score.total,
                    "interval": list(score.interval),
                    "wrong": dict(score.reasons),
                }
                for name, score in self.scores.items()
            },
            "summaries": summaries(self.scores),
            "cut": self.cut,
            "no_room": self.no_room,
            "unanswered": self.unanswered,
            "fault": self.fault,
            "notes": list(self.notes),
            "answers": str(self.directory),
        }


def answers_folder(output: Path, name: str) -> Path:
    """Where a model's answers are kept: in a folder of `output`, whatever it is called. A
    served one may be called by a path, which may be longer than a file's name.
    """
    plain = name.replace("/", "_")
    if plain in ("", ".", ".."):
        plain = f"_{plain}"
    if len(os.fsencode(plain)) > _LONGEST_NAME:
        plain = f"{plain[-32:]}-{checksum(os.fsencode(name))}"
    return output / plain


def _of_other_versions(scores: Mapping[str, Score], version: str) -> Iterator[str]:
    """What a table says that joins categories of several releases of the benchmark."""
    for other in sorted({score.version for score in scores.values()} - {version}):
        yield (
            f"conversations of several turns are those of BFCL {other}, the other "
            f"questions of {version}"
        )


def evaluate_calls(
    model: AnsweringModel,
    data: CaseSet,
    settings: CallSettings,
    directory: Path,
    *,
    name: str | None = None,
    multi_turn: Mapping[str, Score] | None = None,
    program: BenchmarkProgram | None = None,
    threads: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> ScoredModel:
    """Ask a model what it was not asked yet, or what was refused where it may have changed
    since, score all, and keep `scores.json`.

    name: what it is called among others (default: its own name).
    multi_turn: scores of the categories of several turns that were made elsewhere.
    program: what asks these here, `threads` at a time.
    `progress` is told how many cases have an answer.

    IdentityError where the answers in `directory` are of another model, template, data
    or setting; BusyError where another process writes there.
    """
    made_with = {"model": model.statement, "data": data.statement}
    # Its memory is the next model's.
    with exclusive(directory, "alia-ctx evaluate-calls"), closing(model):
        ledger = AnswerLedger(directory, made_with)
        left = [
            case
            for case in data.cases
            if (answer := ledger.answers.get(case.id)) is None
            or (answer.fault and model.may_change)
        ]
        done = len(data.cases) - len(left)
        progress(done)
        if left:
            for batch in model.answers(left):
                ledger.add(
                    (case, answer)
                    for case, answer in batch
                    if ledger.answers.get(case) != answer  # refused as before
                )
                done += len(batch)
                progress(done)
        if program is not None:
            multi_turn = program.scores(
                model,
                directory / FOLDER,
                temperature=settings.temperature,
                max_tokens=settings.max_new_tokens,
                threads=threads,
                progress=lambda conversations: progress(done + conversations),
            )
        scores = score_answers(data.cases, ledger.answers, settings.names)
        asked = [ledger.answers[case.id] for case in data.cases]
        scored = ScoredModel(
            name or model.name,
            model.template,
            {**scores, **(multi_turn or {})},
            directory,
            sum(answer.cut for answer in asked),
            sum(a.cut and 0 < a.tokens < settings.max_new_tokens for a in asked),
            len(left),
            (*model.notes, *_of_other_versions(multi_turn or {}, data.version)),
        )
        statement = {
            **made_with,
            "cases": [case.id for case in data.cases],
            "multi_turn": {
                category: [score.right, score.total]
                for category, score in (multi_turn or {}).items()
            },
        }
        content = json.loads(json.dumps(scored.to_json()))
        write_json(directory / SCORES, sealed(statement, content))
    return scored
