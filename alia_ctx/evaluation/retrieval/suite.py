"""Retrieval samples of several tasks, languages and lengths as rows, and what a model
answers to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import DataError
from alia_ctx.evaluation.evaluator import RowPieces
from alia_ctx.evaluation.held_out import HeldOutRow
from alia_ctx.evaluation.retrieval.haystack import Encode, Haystack
from alia_ctx.evaluation.retrieval.languages import LANGUAGES
from alia_ctx.evaluation.retrieval.samples import (
    Draft,
    NoSampleError,
    Sample,
    TooShortError,
    draft_sample,
)
from alia_ctx.evaluation.retrieval.scores import DEPTHS, RetrievalScores, depth_of
from alia_ctx.evaluation.retrieval.tasks import DIGITS, PASSKEY, RULER

_LEAST_PASSKEY = 64


@dataclass(frozen=True)
class RetrievalSettings:
    """Which samples: `samples` of each task in each language.

    haystack: what hides the needles of tasks on text: the user's `text`, or `noise`.
    digits: of the numbers that are told and asked for; RULER's have 7.
    """

    tasks: tuple[str, ...] = tuple(RULER)
    languages: tuple[str, ...] = ("en",)
    samples: int = 8
    haystack: str = "text"
    seed: int = 1
    digits: int = DIGITS

    def statement(self) -> dict[str, Any]:
        # The number goes up where equal settings make other samples than before.
        stated = {"form": 2, **asdict(self)}
        if self.digits == DIGITS:  # as before there was a choice
            del stated["digits"]
        return stated


@dataclass(frozen=True)
class SampleSpec:
    """A sample that is made when its row is asked for."""

    task: str
    language: str
    length: int
    number: int
    depth: float | None = None


class SampleRows(Sequence[HeldOutRow]):
    """Rows (packed sequences) of `row_length` tokens, each of samples of one length; a
    piece's document number is that of its sample.

    Args:
        encode: text -> ids, without special tokens.
        prefix: ids before each sample, BOS say.
        texts: documents for the haystack of samples of so many tokens, so that a sample
            is the same whatever else is asked; none hides needles in noise.
    """

    def __init__(
        self,
        settings: RetrievalSettings,
        specs: Sequence[SampleSpec],
        encode: Encode,
        row_length: int,
        *,
        prefix: Sequence[int] = (),
        texts: Callable[[int], Sequence[str]] = lambda length: (),
    ) -> None:
        self.settings, self.specs = settings, tuple(specs)
        self._encode, self._prefix = encode, tuple(prefix)
        self._row_length = row_length
        self._haystacks: dict[tuple[str, int], Haystack] = {}
        self._texts = texts
        if any(spec.length > row_length for spec in specs):
            raise DataError(
                f"samples of {max(spec.length for spec in specs)} tokens do not fit into "
                f"rows of {row_length}: their answers would be cut off"
            )
        self._rows: list[list[int]] = []
        for number, spec in enumerate(self.specs):
            last = self._rows[-1] if self._rows else []
            same = last and self.specs[last[0]].length == spec.length
            if same and (len(last) + 1) * spec.length <= row_length:
                last.append(number)
            else:
                self._rows.append([number])

    def sample(self, number: int) -> Sample:
        return self.make(self.specs[number])

    def make(self, spec: SampleSpec) -> Sample:
        """The sample of a spec; NoSampleError where there is none of its length."""
        return self.draft(spec).sample()

    def draft(self, spec: SampleSpec) -> Draft:
        """The sample of a spec but for its haystack; NoSampleError as for `make`."""
        return draft_sample(
            spec.task,
            spec.length,
            self._encode,
            seed=(self.settings.seed, spec.number),
            language=spec.language,
            haystack=self._haystack(spec.language, spec.length),
            depth=spec.depth,
            prefix=self._prefix,
            digits=self.settings.digits,
        )

    def _haystack(self, language: str, length: int) -> Haystack:
        in_text = self.settings.haystack == "text"
        texts = self._texts(length) if in_text else ()
        place = ("", length) if texts else (language, 0)
        if place not in self._haystacks:
            noise = ["\n".join(LANGUAGES[language].noise)]
            self._haystacks[place] = Haystack(texts or noise, self._encode)
        return self._haystacks[place]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> HeldOutRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[HeldOutRow]: ...
    def __getitem__(self, index: int | slice) -> HeldOutRow | list[HeldOutRow]:
        if isinstance(index, slice):
            return [self._row(numbers) for numbers in self._rows[index]]
        return self._row(self._rows[index])

    def _row(self, numbers: Sequence[int]) -> HeldOutRow:
        samples = [self.sample(number) for number in numbers]
        row = PackedRow.from_documents([s.tokens for s in samples], self._row_length)
        pieces = tuple(zip(numbers, samples, strict=True))
        return SampleRow(row, (0,) * len(samples), (), pieces)


@dataclass(frozen=True)
class SampleRow(HeldOutRow):
    """A row of samples, with their numbers."""

    samples: tuple[tuple[int, Sample], ...] = ()

    @property
    def pieces(self) -> SamplePieces:
        return SamplePieces(self.row, dict(enumerate(self.samples)))


@dataclass(frozen=True)
class SamplePieces:
    """`RowPieces` that knows the samples of its pieces."""

    row: PackedRow
    samples: Mapping[int, tuple[int, Sample]]

    @property
    def length(self) -> int:
        return self.row.length

    @property
    def doc_offsets(self) -> NDArray[np.int64]:
        return self.row.doc_offsets

    @property
    def doc_ids(self) -> NDArray[np.int64]:
        return self.row.doc_ids

    @property
    def sources(self) -> NDArray[np.int32]:
        return self.row.sources


class AnswerHits:
    """An `Evaluator` of rows of samples: which answer tokens were hits, and which were
    seen at all: with context parallelism a rank has some of a sample's tokens.
    """

    def __init__(self) -> None:
        self._answers: dict[int, dict[str, Any]] = {}

    def add(
        self,
        row: RowPieces,
        losses_T: NDArray[np.floating[Any]],
        hits_T: NDArray[np.bool_] | None = None,
        *,
        position_offset: Sequence[int] | None = None,
    ) -> None:
        """Add one row of samples; DataError where it is another row, or without hits."""
        if not isinstance(row, SamplePieces) or hits_T is None:
            raise DataError("answers are read from rows of samples, with their hits")
        for piece, (number, sample) in row.samples.items():
            start = int(row.doc_offsets[piece])
            first, last = (start + at - 1 for at in sample.answer)
            entry = {
                "task": sample.task,
                "language": sample.language,
                "length": len(sample.tokens),
                "depth": depth_of(sample),
                "parts": [
                    [a - sample.answer[0], b - sample.answer[0]]
                    for a, b in sample.answers
                ],
                "hits": hits_T[first:last].astype(int).tolist(),
                "seen": (~np.isnan(losses_T[first:last])).astype(int).tolist(),
            }
            self._take(number, entry)

    def _take(self, number: int, entry: Mapping[str, Any]) -> None:
        before = self._answers.setdefault(number, dict(entry))
        for name in ("hits", "seen"):
            both = zip(before[name], entry[name], strict=True)
            before[name] = [int(a or b) for a, b in both]

    def merge(self, other: AnswerHits) -> None:
        """Add all that `other` holds."""
        for number, entry in other._answers.items():
            self._take(number, entry)

    def to_json(self) -> dict[str, Any]:
        """All that this holds, in JSON's types; `from_json` reads it back."""
        return {"answers": {str(n): entry for n, entry in self._answers.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AnswerHits:
        """The inverse of `to_json`; DataError where the data is of another form."""
        made = cls()
        try:
            for number, entry in data["answers"].items():
                made._take(int(number), entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"no answers as `to_json` writes them: {error!r}"
            ) from error
        return made

    def scores(self, expected: int) -> RetrievalScores:
        """The scores of all samples.

        DataError where fewer than `expected` were measured, or a token of an answer was
        measured by nobody: that is a fault of the measurement, not a wrong answer.
        """
        if len(self._answers) != expected:
            raise DataError(f"{len(self._answers)} of {expected} samples were measured")
        scores = RetrievalScores()
        for entry in self._answers.values():
            if not all(entry["seen"]):
                raise DataError(
                    f"{entry['task']}, {entry['length']} tokens: an answer was cut off"
                )
            cell = (entry["task"], entry["language"], entry["length"], entry["depth"])
            parts = [all(entry["hits"][a:b]) for a, b in entry["parts"]]
            scores.count(cell, all(entry["hits"]), parts)
        return scores


def ruler_specs(
    settings: RetrievalSettings, rows: SampleRows, lengths: Sequence[int]
) -> tuple[list[SampleSpec], dict[str, str]]:
    """The samples of all tasks, and why tasks are left out at a length that one of their
    samples is not to be had of: `TASK at LENGTH` -> the reason, `TASK (LANGUAGE) at
    LENGTH` where other languages have it. All fit: `rows` drafts each.

    NoSampleError where nothing is left.
    """
    specs: list[SampleSpec] = []
    left_out: dict[str, str] = {}
    refusal: type[NoSampleError] = TooShortError
    for length in lengths:
        for task in settings.tasks:
            reasons: dict[str, str] = {}
            for language in settings.languages:
                samples = [
                    SampleSpec(task, language, length, number)
                    for number in range(settings.samples)
                ]
                try:
                    specs += _that_fit(rows, samples)
                except NoSampleError as error:
                    reasons[language], refusal = str(error), type(error)
            if len(reasons) == len(settings.languages):
                left_out[f"{task} at {length}"] = next(iter(reasons.values()))
            else:
                for language, reason in reasons.items():
                    left_out[f"{task} ({language}) at {length}"] = reason
    if not specs:
        told = "; ".join(left_out.values())
        raise refusal(f"no retrieval task fits: {told}")
    return specs, left_out


def _that_fit(rows: SampleRows, specs: list[SampleSpec]) -> list[SampleSpec]:
    """`specs`; NoSampleError where one of them is not to be had."""
    for spec in specs:
        rows.draft(spec)
    return specs


def passkey_specs(
    settings: RetrievalSettings, rows: SampleRows, context: int, native: int
) -> list[SampleSpec]:
    """A grid of ten depths and of lengths: the context, halves of it, and the base's
    native length; of these the ones into which every sample fits.

    TooShortError where the task does not fit into the context, UnspelledError where the
    tokenizer has no sample of it.
    """
    lengths = {context >> halvings for halvings in range(4)}
    lengths |= {native} if native <= context else set()
    language = settings.languages[0]
    specs: list[SampleSpec] = []
    for length in sorted(n for n in lengths if n >= _LEAST_PASSKEY):
        samples = [
            SampleSpec(PASSKEY, language, length, number, (tenth + 0.5) / DEPTHS)
            for tenth in range(DEPTHS)
            for number in range(max(1, settings.samples // 4))
        ]
        with suppress(TooShortError):
            specs += _that_fit(rows, samples)
    if not specs:
        raise TooShortError(
            f"passkey: does not fit into {context} tokens; ask for more"
        )
    return specs
