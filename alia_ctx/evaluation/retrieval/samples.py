"""A sample of a retrieval task:

a row of exactly so many tokens that ends in the answer to its question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval.languages import LANGUAGES
from alia_ctx.evaluation.retrieval.tasks import RULER

Encode = Callable[[str], Sequence[int]]
# Asked of every task: below this many tokens nothing is hidden by anything.
_LEAST_HAYSTACK = 16
_LETTERS = np.array(list("bcdfghjklmnpqrstvwxz"))
_VOWELS = np.array(list("aeiou"))


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


class Haystack:
    """Lines to hide needles between, as tokens: the user's documents over and over, in a
    seeded order of documents.

    Args:
        texts: documents; each is cut into its lines (long ones into sentences).
        encode: text -> token ids, without special tokens.
    """

    def __init__(self, texts: Iterable[str], encode: Encode) -> None:
        self._documents = [
            [np.asarray(encode(line + "\n"), np.int64) for line in _lines(text)]
            for text in texts
        ]
        self._documents = [lines for lines in self._documents if lines]
        if not self._documents:
            raise DataError(
                "the haystack has no text; give documents with at least one line"
            )

    def lines(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Lines of the documents in a random order, for ever."""
        while True:
            for number in generator.permutation(len(self._documents)):
                yield from self._documents[number]


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
) -> Sample:
    """A sample of RULER's task `task`, exactly `length` tokens long.

    `encode` gives the ids of a text without special tokens; `prefix` (a BOS, say)
    stands before everything. `depth` (0 to 1) fixes where the asked needle of a
    single-needle task is hidden; by default it is drawn. Equal arguments give equal
    tokens. DataError: an unknown task or language, a task on text without `haystack`, a
    length in which the question alone does not fit.
    """
    if task not in RULER:
        raise DataError(
            f"there is no retrieval task {task}; there are {', '.join(RULER)}"
        )
    if language not in LANGUAGES:
        raise DataError(
            f"there is no language {language}; there are {', '.join(LANGUAGES)}"
        )
    return _Maker(task, length, encode, seed, language, haystack, depth, prefix).make()


@dataclass(frozen=True)
class _Content:
    """What a task puts into a row:

    sentences to hide (with their depths), the filling, question and answers.
    """

    instruction: str
    hidden: list[tuple[float, str]]
    filling: Iterator[np.ndarray]
    question: str
    lead: str
    answers: list[str]
    depths: tuple[float, ...]


class _Maker:
    def __init__(
        self,
        task: str,
        length: int,
        encode: Encode,
        seed: int | Sequence[int],
        language: str,
        haystack: Haystack | None,
        depth: float | None,
        prefix: Sequence[int],
    ) -> None:
        self.name, self.task, self.length = task, RULER[task], length
        self.encode, self.language, self.words = encode, language, LANGUAGES[language]
        self.haystack, self.depth, self.prefix = haystack, depth, prefix
        purpose = [ord(letter) for letter in f"{task}/{language}/{length}"]
        seeds = [seed] if isinstance(seed, int) else list(seed)
        self.random = np.random.default_rng([*seeds, *purpose])
        self._used: set[str] = set()

    def make(self) -> Sample:
        content = {
            "needles": self._needles,
            "variables": self._variables,
            "common_words": self._common_words,
            "frequent_words": self._frequent_words,
            "question": self._question,
        }[self.task.form]()
        return self._assemble(content)

    # -- rows --------------------------------------------------------------------------

    def _line(self, text: str) -> np.ndarray:
        return np.asarray(self.encode(text + "\n"), np.int64)

    def _tail(self, before: str, text: str) -> np.ndarray:
        """Ids of `text` as it continues `before`: what a model would have to write after it."""
        whole, start = list(self.encode(before + text)), list(self.encode(before))
        continues = whole[: len(start)] == start
        return np.asarray(
            whole[len(start) :] if continues else self.encode(text), np.int64
        )

    def _assemble(self, content: _Content) -> Sample:
        head = np.concatenate(
            [np.asarray(self.prefix, np.int64), self._line(content.instruction)]
        )
        question = np.concatenate(
            [
                self._line("\n\n" + content.question),
                np.asarray(self.encode(content.lead), np.int64),
            ]
        )
        written, answers, parts = content.lead, [], []
        for number, answer in enumerate(content.answers):
            comma = "," if number else ""
            if comma:
                parts.append((False, self._tail(written, comma)))
                written += comma
            parts.append((True, self._tail(written, " " + answer)))
            written += " " + answer
        hidden = [(depth, self._line(text)) for depth, text in sorted(content.hidden)]
        fixed = len(head) + len(question) + sum(len(ids) for _, ids in parts)
        room = self.length - fixed - sum(len(ids) for _, ids in hidden)
        if room < _LEAST_HAYSTACK:
            raise DataError(
                f"{self.name} needs "
                f"{fixed + self.length - fixed - room + _LEAST_HAYSTACK} tokens or more "
                f"with this tokenizer, not {self.length}; ask for longer rows"
            )
        body = _with_hidden(_fill(content.filling, room), hidden)
        at = len(head) + len(body) + len(question)
        for is_answer, ids in parts:
            if is_answer:
                answers.append((at, at + len(ids)))
            at += len(ids)
        tokens = np.concatenate([head, body, question, *(ids for _, ids in parts)])
        assert len(tokens) == self.length
        return Sample(
            self.name,
            self.language,
            tokens,
            tuple(answers),
            tuple(content.answers),
            content.depths,
        )

    def _filling(self) -> Iterator[np.ndarray]:
        if self.task.haystack == "noise":
            return cycle([self._line(sentence) for sentence in self.words.noise])
        if self.task.haystack == "needles":
            return self._distractors()
        if self.haystack is None:
            raise DataError(
                f"{self.name} hides its needles in text; give a haystack of documents"
            )
        return self.haystack.lines(self.random)

    def _distractors(self) -> Iterator[np.ndarray]:
        while True:
            yield self._line(
                self.words.needle.format(key=self._key(), value=self._value())
            )

    # -- what is hidden ----------------------------------------------------------------

    def _fresh(self, draw: Callable[[], str]) -> str:
        while (text := draw()) in self._used:
            pass
        self._used.add(text)
        return text

    def _uuid(self) -> str:
        digits = "".join(f"{byte:02x}" for byte in self.random.integers(0, 256, 16))
        return "-".join(
            digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
        )

    def _pair(self) -> str:
        pick = self.random.choice
        name = f"{pick(self.words.adjectives)}-{pick(self.words.nouns)}"
        # 1,024 pairs; past half of them a number keeps keys apart, as a long haystack
        # of needles needs.
        return (
            name
            if len(self._used) < 512
            else f"{name}-{self.random.integers(10, 10_000_000)}"
        )

    def _key(self) -> str:
        return self._fresh(self._uuid if self.task.key_type == "uuids" else self._pair)

    def _value(self) -> str:
        if self.task.value_type == "uuids":
            return self._fresh(self._uuid)
        return self._fresh(lambda: str(self.random.integers(1_000_000, 10_000_000)))

    def _depths(self, count: int) -> list[float]:
        if self.depth is not None and count == 1:
            return [self.depth]
        return sorted(self.random.random(count).tolist())

    def _needles(self) -> _Content:
        task, words = self.task, self.words
        values = {
            self._key(): [self._value() for _ in range(task.values)]
            for _ in range(task.keys)
        }
        order = [(key, value) for key, given in values.items() for value in given]
        depths = self._depths(len(order))
        if task.values == 1:
            order = [order[i] for i in self.random.permutation(len(order))]
        hidden = [
            (depth, words.needle.format(key=key, value=value))
            for depth, (key, value) in zip(depths, order, strict=True)
        ]
        asked = [key for key, _ in order][:: task.values]
        if task.queries < len(asked):
            chosen = self.random.permutation(len(asked))[: task.queries]
            asked = [asked[i] for i in chosen]
        places = dict(zip(((k, v) for k, v in order), depths, strict=True))
        answers = [value for key in asked for value in values[key]]
        key = ", ".join(asked)
        question, lead = words.needle_question, words.needle_answer
        if task.values > 1:
            question, lead = words.values_question, words.values_answer
        elif task.queries > 1:
            question, lead = words.keys_question, words.keys_answer
        return _Content(
            words.instruction,
            hidden,
            self._filling(),
            question.format(key=key),
            lead.format(key=key),
            answers,
            tuple(places[key, value] for key in asked for value in values[key]),
        )

    def _variables(self) -> _Content:
        words, chains = self.words, []
        hidden: list[tuple[float, str]] = []
        for _ in range(self.task.chains):
            value = self._fresh(lambda: str(self.random.integers(10_000, 100_000)))
            names = [self._fresh(self._coded) for _ in range(self.task.hops + 1)]
            depths = self._depths(len(names))
            texts = [words.assign.format(name=names[0], value=value)]
            texts += [
                words.copy.format(name=name, other=other)
                for other, name in pairwise(names)
            ]
            hidden += list(zip(depths, texts, strict=True))
            chains.append((value, names, depths))
        value, names, depths = chains[0]
        return _Content(
            words.instruction,
            hidden,
            self._filling(),
            words.variables_question.format(value=value),
            words.variables_answer.format(value=value),
            names,
            tuple(depths),
        )

    def _coded(self) -> str:
        """A word that no language has: consonants and vowels in turn, six letters."""
        pick = self.random.choice
        return "".join(
            str(pick(_LETTERS)) + str(pick(_VOWELS)) for _ in range(3)
        ).upper()

    def _common_words(self) -> _Content:
        task, words = self.task, self.words
        common = [self._fresh(self._pair) for _ in range(task.words)]
        rest = (
            self.length
            - sum(len(self._line(f"1. {word}")) for word in common) * task.common
        )
        entries = [word for word in common for _ in range(task.common)]
        if (
            rest < self.length // 4
        ):  # the common words would be most of the list, or not all there
            raise DataError(
                f"{self.name} lists {len(entries)} entries of common words, "
                f"{self.length - rest} tokens with this "
                f"tokenizer, and cannot hide them in {self.length}; ask for longer rows"
            )
        while rest > 0:
            word = self._fresh(self._pair)
            entries += [word] * task.uncommon
            rest -= task.uncommon * len(self._line(f"100. {word}"))
        order = self.random.permutation(len(entries))
        lines = (self._line(f"{n}. {entries[i]}") for n, i in enumerate(order, 1))
        question = words.common_question.format(count=task.words)
        lead = words.common_answer.format(count=task.words)
        first = {entries[i]: n for n, i in reversed(list(enumerate(order)))}
        return _Content(
            words.list_instruction,
            [],
            lines,
            question,
            lead,
            sorted(common, key=first.__getitem__),
            (),
        )

    def _frequent_words(self) -> _Content:
        words = self.words
        size = len(self._line(self._coded()))
        total = max(64, self.length // max(1, size))
        shares = np.arange(1, 1 + total // 8, dtype=np.float64) ** -self.task.alpha
        counts = np.maximum(1, np.round(shares / shares.sum() * total)).astype(int)
        coded = [self._fresh(self._coded) for _ in counts]
        entries = [
            word
            for word, count in zip(coded, counts, strict=True)
            for _ in range(count)
        ]
        lines = (
            self._line(entries[i]) for i in cycle(self.random.permutation(len(entries)))
        )
        return _Content(
            words.list_instruction,
            [],
            lines,
            words.frequent_question,
            words.frequent_answer,
            coded[:3],
            (),
        )

    def _question(self) -> _Content:
        words = self.words
        people = [self._person() for _ in range(2)]
        depths = self._depths(1 + self.task.hops)
        thing = self._pair()
        hidden = [(depths[-1], self._record(people[0], thing))]
        asked, question, lead = people[0], words.fact_question, words.fact_answer
        if self.task.hops:
            hidden.append(
                (
                    depths[0],
                    words.hop.format(
                        number=self._number(), person=people[1], other=people[0]
                    ),
                )
            )
            asked, question, lead = people[1], words.hop_question, words.hop_answer
        return _Content(
            words.instruction,
            hidden,
            (
                self._line(self._record(self._person(), self._pair()))
                for _ in iter(int, 1)
            ),
            question.format(person=asked),
            lead.format(person=asked),
            [thing],
            tuple(depths),
        )

    def _person(self) -> str:
        return self._fresh(
            lambda: f"{self._coded().capitalize()} {self._coded().capitalize()}"
        )

    def _number(self) -> str:
        return str(self.random.integers(1000, 10_000))

    def _record(self, person: str, thing: str) -> str:
        place = self._coded().capitalize()
        return self.words.fact.format(
            number=self._number(), person=person, place=place, thing=thing
        )


def _lines(text: str, longest: int = 400) -> Iterator[str]:
    """Lines of a text; long ones are cut after sentences."""
    for line in text.splitlines():
        while len(line) > longest:
            cut = line.rfind(". ", 0, longest) + 2
            cut = cut if cut > 1 else longest
            yield line[:cut].rstrip()
            line = line[cut:]
        if line.strip():
            yield line


def _fill(lines: Iterator[np.ndarray], room: int) -> list[np.ndarray]:
    """Lines of exactly `room` tokens in all: the last one is cut."""
    filled, size = [], 0
    for line in lines:
        filled.append(line[: room - size])
        size += len(filled[-1])
        if size == room:
            return filled
    raise DataError(f"the filling has only {size} of {room} tokens")


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
