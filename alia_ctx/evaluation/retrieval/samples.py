"""A sample of a retrieval task: a row of exactly so many tokens that ends in the
answer to its question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval.contents import Content, ContentMaker, as_line
from alia_ctx.evaluation.retrieval.haystack import Encode, Haystack
from alia_ctx.evaluation.retrieval.languages import LANGUAGES
from alia_ctx.evaluation.retrieval.spelling import is_told_apart
from alia_ctx.evaluation.retrieval.tasks import DIGITS, TASKS

# Words that a seed draws are of different lengths and letters: where the first do not fit,
# others may.
_DRAWINGS = 16


class NoSampleError(DataError):
    """A task has no sample in rows of a length with a tokenizer."""


class TooShortError(NoSampleError):
    """What a task says and asks does not fit into rows as short as these."""


class UnspelledError(NoSampleError):
    """A tokenizer does not tell the words of a task from others, so that an answer could
    be right of a model that read nothing.
    """


@dataclass(frozen=True, eq=False)
class Sample:
    """A row of `tokens` (int64 [length]) whose last part is the answer.

    answers: token ranges [start, stop) of the single answers, in order; what stands
        between two of them (a comma) is
        given with the row, but counts for `RetrievalScores` like an answer: a greedy
        answer has to write it too.
    depths: where, as a share of the haystack, each of the asked facts was hidden; empty
        for tasks about all of it.
    """

    task: str
    language: str
    tokens: np.ndarray
    answers: tuple[tuple[int, int], ...]
    texts: tuple[str, ...]
    depths: tuple[float, ...]

    @property
    def answer(self) -> tuple[int, int]:
        """Token range [start, stop) from the first answer's first token to the last one's last."""
        return self.answers[0][0], self.answers[-1][1]


@dataclass(frozen=True, eq=False)
class Draft:
    """A sample of `length` tokens of which all is drawn but what hides it.

    head, question: ids before and after the haystack.
    hidden: depths and ids of what is hidden, in order.
    parts: whether it is an answer, and ids, of what follows the question.
    """

    task: str
    language: str
    length: int
    content: Content
    head: np.ndarray
    question: np.ndarray
    hidden: list[tuple[float, np.ndarray]]
    parts: list[tuple[bool, np.ndarray]]

    @property
    def room(self) -> int:
        """Tokens of the haystack; below 0 where even the rest of the row does not fit."""
        said = [self.head, self.question, *(ids for _, ids in self.hidden + self.parts)]
        return self.length - sum(map(len, said))

    @property
    def needed(self) -> int:
        """The length from which this fits."""
        return self.length - self.room + self.content.least

    def sample(self) -> Sample:
        """The whole row."""
        lines = _fill(self.content.filling(self.room), self.room)
        body = _with_hidden(lines, self.hidden)
        answers, at = [], len(self.head) + len(body) + len(self.question)
        for is_answer, ids in self.parts:
            if is_answer:
                answers.append((at, at + len(ids)))
            at += len(ids)
        tokens = np.concatenate(
            [self.head, body, self.question, *(ids for _, ids in self.parts)]
        )
        assert len(tokens) == self.length
        return Sample(
            self.task,
            self.language,
            tokens,
            tuple(answers),
            tuple(self.content.answers),
            self.content.depths,
        )


def make_sample(
    task: str,
    length: int,
    encode: Encode,
    *,
    seed: int | Sequence[int],
    language: str = "en",
    haystack: Haystack | None = None,
    depth: float | None = None,
    prefix: Sequence[int] = (),
    digits: int = DIGITS,
) -> Sample:
    """A sample of `task`, one of `TASKS`, exactly `length` tokens long: that of
    `draft_sample`, whose arguments and errors these are. Equal arguments give equal
    tokens.
    """
    return draft_sample(
        task,
        length,
        encode,
        seed=seed,
        language=language,
        haystack=haystack,
        depth=depth,
        prefix=prefix,
        digits=digits,
    ).sample()


def draft_sample(
    task: str,
    length: int,
    encode: Encode,
    *,
    seed: int | Sequence[int],
    language: str = "en",
    haystack: Haystack | None = None,
    depth: float | None = None,
    prefix: Sequence[int] = (),
    digits: int = DIGITS,
) -> Draft:
    """A sample that fits, before its haystack is made, which takes the time: the first of
    some drawings by `seed` that has the room that its task needs.

    `encode` gives the ids of a text without special tokens; `prefix` (a BOS, say)
    stands before everything. `depth` (0 to 1) fixes where the asked needle of a
    single-needle task is hidden; by default it is drawn. Values that are numbers have
    `digits` digits. Equal arguments give an equal draft. TooShortError: none of the
    drawings fits. UnspelledError: of those that fit none has words that `encode` tells
    from others. DataError: an unknown task or language, a task on text without
    `haystack` (as soon as its sample is made).
    """
    if task not in TASKS:
        raise DataError(
            f"there is no retrieval task {task}; there are {', '.join(TASKS)}"
        )
    if language not in LANGUAGES:
        raise DataError(
            f"there is no language {language}; there are {', '.join(LANGUAGES)}"
        )
    purpose = [ord(letter) for letter in f"{task}/{language}/{length}"]
    seeds = [seed] if isinstance(seed, int) else list(seed)
    needed, unspelled = [], []
    for drawing in range(_DRAWINGS):
        random = np.random.default_rng(
            [*seeds, *purpose, *([drawing] if drawing else [])]
        )
        maker = ContentMaker(task, encode, random, language, haystack, depth, digits)
        draft = _draft(task, language, length, encode, prefix, maker.make())
        if draft.needed > length:
            needed.append(draft.needed)
            continue
        lost = _lost(encode, language, draft.content)
        if lost is None:
            return draft
        unspelled.append(lost)
    if unspelled:
        raise UnspelledError(
            f"{task}: this tokenizer does not tell {unspelled[0]!r} from other words, so that "
            "a right answer would show nothing; leave the task out"
        )
    raise TooShortError(
        f"{task} needs {min(needed)} tokens or more with this tokenizer, not {length}; "
        "ask for longer rows"
    )


def _lost(encode: Encode, language: str, content: Content) -> str | None:
    """A word of a content that its ids do not tell from others; None where there is none."""
    if not any(len(as_line(encode, line)) for line in LANGUAGES[language].noise):
        return LANGUAGES[language].noise[0]
    words = (*content.names, *content.answers)
    return next((word for word in words if not is_told_apart(encode, word)), None)


def _tail(encode: Encode, before: str, text: str) -> np.ndarray:
    """Ids of `text` as it continues `before`: what a model would have to write after it."""
    whole, start = list(encode(before + text)), list(encode(before))
    continues = whole[: len(start)] == start
    return np.asarray(whole[len(start) :] if continues else encode(text), np.int64)


def _draft(
    task: str,
    language: str,
    length: int,
    encode: Encode,
    prefix: Sequence[int],
    content: Content,
) -> Draft:
    """A content as ids: instruction, what is hidden, question, answers."""
    head = np.concatenate(
        [np.asarray(prefix, np.int64), as_line(encode, content.instruction)]
    )
    question = np.concatenate(
        [
            as_line(encode, "\n\n" + content.question),
            np.asarray(encode(content.lead), np.int64),
        ]
    )
    written, parts = content.lead, []
    for number, answer in enumerate(content.answers):
        comma = "," if number else ""
        if comma:
            parts.append((False, _tail(encode, written, comma)))
            written += comma
        parts.append((True, _tail(encode, written, " " + answer)))
        written += " " + answer
    hidden = [(depth, as_line(encode, text)) for depth, text in sorted(content.hidden)]
    return Draft(task, language, length, content, head, question, hidden, parts)


def _fill(lines: Iterator[np.ndarray], room: int) -> list[np.ndarray]:
    """Lines of exactly `room` tokens in all: the last one is cut."""
    filled, size = [], 0
    for line in lines:
        filled.append(line[: room - size])
        size += len(filled[-1])
        if size == room:
            return filled
    raise AssertionError(f"the filling has only {size} of {room} tokens")


def _with_hidden(
    lines: list[np.ndarray], hidden: list[tuple[float, np.ndarray]]
) -> np.ndarray:
    """`lines` with each hidden sentence put before the line at its depth, a share of the tokens."""
    starts = np.concatenate(([0], np.cumsum([len(line) for line in lines])))
    parts: list[np.ndarray] = []
    done = 0
    for depth, ids in hidden:
        # Never after the last line, which may be cut in the middle.
        at = int(np.searchsorted(starts[:-1], depth * starts[-1], "left"))
        at = max(done, min(at, len(lines) - 1))
        parts += [*lines[done:at], ids]
        done = at
    return np.concatenate([*parts, *lines[done:]])
