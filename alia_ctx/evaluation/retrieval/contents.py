"""What a retrieval task puts into a row: needles, variables, words or facts to hide, what
hides them, the question and its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval.draws import Draws
from alia_ctx.evaluation.retrieval.haystack import Encode, Haystack
from alia_ctx.evaluation.retrieval.languages import LANGUAGES
from alia_ctx.evaluation.retrieval.tasks import DIGITS, TASKS
from alia_ctx.evaluation.retrieval.word_lists import (
    NumberedList,
    frequent_entries,
    least_of_frequent,
)


@dataclass(frozen=True)
class Content:
    """What a task puts into a row:

    sentences to hide (with their depths), the filling, question and answers.

    filling: lines for a room of so many tokens, more than fit into it: the last one is
        cut.
    least: tokens of filling below which the task asks for nothing that is hidden.
    names: what the question names.
    """

    instruction: str
    hidden: list[tuple[float, str]]
    filling: Callable[[int], Iterator[np.ndarray]]
    question: str
    lead: str
    answers: list[str]
    depths: tuple[float, ...]
    least: int = 16
    names: tuple[str, ...] = ()


class ContentMaker:
    """Draws the content of a row for one of RULER's tasks."""

    def __init__(
        self,
        task: str,
        encode: Encode,
        random: np.random.Generator,
        language: str,
        haystack: Haystack | None,
        depth: float | None,
        digits: int = DIGITS,
    ) -> None:
        self.name, self.task = task, TASKS[task]
        self.encode, self.words = encode, LANGUAGES[language]
        self.haystack, self.depth, self.random = haystack, depth, random
        self.draws, self.digits = Draws(random, self.words), digits

    def make(self) -> Content:
        return {
            "needles": self._needles,
            "variables": self._variables,
            "common_words": self._common_words,
            "frequent_words": self._frequent_words,
            "question": self._question,
        }[self.task.form]()

    def _line(self, text: str) -> np.ndarray:
        return as_line(self.encode, text)

    def _noise(self) -> Iterator[np.ndarray]:
        return cycle([self._line(sentence) for sentence in self.words.noise])

    def _filling(self, room: int) -> Iterator[np.ndarray]:
        if self.task.haystack == "noise":
            return self._noise()
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

    def _key(self) -> str:
        return self.draws.fresh(
            self.draws.uuid if self.task.key_type == "uuids" else self.draws.pair
        )

    def _value(self) -> str:
        if self.task.value_type == "uuids":
            return self.draws.fresh(self.draws.uuid)
        return self.draws.code(self.digits)

    def _depths(self, count: int) -> list[float]:
        if self.depth is not None and count == 1:
            return [self.depth]
        return sorted(self.random.random(count).tolist())

    def _needles(self) -> Content:
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
        return Content(
            words.instruction,
            hidden,
            self._filling,
            question.format(key=key),
            lead.format(key=key),
            answers,
            tuple(places[key, value] for key in asked for value in values[key]),
            names=tuple(asked),
        )

    def _variables(self) -> Content:
        words, chains = self.words, []
        hidden: list[tuple[float, str]] = []
        for _ in range(self.task.chains):
            value = self.draws.fresh(lambda: str(self.random.integers(10_000, 100_000)))
            names = [
                self.draws.fresh(self.draws.coded) for _ in range(self.task.hops + 1)
            ]
            depths = self._depths(len(names))
            texts = [words.assign.format(name=names[0], value=value)]
            texts += [
                words.copy.format(name=name, other=other)
                for other, name in pairwise(names)
            ]
            hidden += list(zip(depths, texts, strict=True))
            chains.append((value, names, depths))
        value, names, depths = chains[0]
        return Content(
            words.instruction,
            hidden,
            self._filling,
            words.variables_question.format(value=value),
            words.variables_answer.format(value=value),
            names,
            tuple(depths),
            names=(value,),
        )

    def _common_words(self) -> Content:
        task, words = self.task, self.words
        common = [self.draws.fresh(self.draws.pair) for _ in range(task.words)]
        listed = NumberedList(self._line, common, task.common, task.uncommon)

        def lines(room: int) -> Iterator[np.ndarray]:
            draw = partial(self.draws.fresh, self.draws.pair)
            yield from listed.lines(draw, self.random, room)
            yield from self._noise()

        return Content(
            words.list_instruction,
            [],
            lines,
            words.common_question.format(count=task.words),
            words.common_answer.format(count=task.words),
            common,
            (),
            listed.least,
        )

    def _frequent_words(self) -> Content:
        words, alpha = self.words, self.task.alpha
        draw = partial(self.draws.fresh, self.draws.coded)
        ranked = [draw() for _ in range(4)]

        def lines(room: int) -> Iterator[np.ndarray]:
            entries = frequent_entries(self._line, ranked, draw, alpha, room)
            for i in self.random.permutation(len(entries)):
                yield self._line(entries[i])
            yield from self._noise()

        return Content(
            words.list_instruction,
            [],
            lines,
            words.frequent_question,
            words.frequent_answer,
            ranked[:3],
            (),
            least_of_frequent(self._line, ranked, alpha),
        )

    def _question(self) -> Content:
        words = self.words
        people = [self.draws.person() for _ in range(2)]
        depths = self._depths(1 + self.task.hops)
        thing = self.draws.pair()
        hidden = [(depths[-1], self._record(people[0], thing))]
        asked, question, lead = people[0], words.fact_question, words.fact_answer
        if self.task.hops:
            hidden.append(
                (
                    depths[0],
                    words.hop.format(
                        number=self.draws.number(), person=people[1], other=people[0]
                    ),
                )
            )
            asked, question, lead = people[1], words.hop_question, words.hop_answer
        return Content(
            words.instruction,
            hidden,
            self._records,
            question.format(person=asked),
            lead.format(person=asked),
            [thing],
            tuple(depths),
            names=(asked,),
        )

    def _records(self, room: int) -> Iterator[np.ndarray]:
        while True:
            yield self._line(self._record(self.draws.person(), self.draws.pair()))

    def _record(self, person: str, thing: str) -> str:
        place = self.draws.coded().capitalize()
        return self.words.fact.format(
            number=self.draws.number(), person=person, place=place, thing=thing
        )


def as_line(encode: Encode, text: str) -> np.ndarray:
    """Ids of a text as a line of its own."""
    return np.asarray(encode(text + "\n"), np.int64)
