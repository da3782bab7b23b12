"""Documents that ask at their end what stood at their beginning: codes woven into text.

A model of a million parameters learns too little language for its text to show the use
of far context. So the demo's mixture has a source of these, made from the sentences of
`alia_ctx.evaluation.retrieval`, and the held-out documents carry codes too: each code
stands once in the text and is asked for once, at any distance.

No code of the held-out text, and none that the retrieval tasks ask for, can be known from
training: other seeds draw the codes, and the things that have them have other names (two
nouns in training, an adjective and a noun in evaluation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval import LANGUAGES
from alia_ctx.evaluation.retrieval.haystack import Encode

WORDS = LANGUAGES["en"]
_LATEST_NEEDLE = 0.8  # of the text; what is asked for stands before it
_LEAST_FILLING = 4  # tokens
_SHARE_OF_CODES = 0.6  # of the lines of a document that says them twice


@dataclass(frozen=True)
class Part:
    """A piece of a document's text; `is_known` marks what a reader of the document can
    know: the answer to a question, and the sentence that leads to it.
    """

    text: str
    is_known: bool = False


class CodeWriter:
    """Writes documents with codes, from a seed.

    Args:
        encode: text -> token ids without special tokens.
        seed: of all that is drawn.
        training: whether names are those of training (two nouns) or of evaluation.
    """

    def __init__(self, encode: Encode, seed: int, *, training: bool) -> None:
        self._encode, self._random = encode, np.random.default_rng(seed)
        self._first = WORDS.nouns if training else WORDS.adjectives

    def document(
        self, lines: Iterator[str], length: int, tokens_a_code: int = 150
    ) -> list[Part]:
        """A document of about `length` tokens, never more: `lines`, a code for each
        `tokens_a_code` tokens hidden between them, and as many questions, the last of
        which ends it. DataError where not even one code fits.
        """
        codes = self._codes(max(1, length // tokens_a_code))
        asked = [codes[i] for i in self._random.permutation(len(codes))]
        needles = [Part(WORDS.needle.format(key=k, value=v) + "\n") for k, v in codes]
        questions = [_question(key, value) for key, value in asked]
        head = Part(WORDS.instruction + "\n")
        fixed = [head, *needles, *(part for q in questions for part in q)]
        filling = self._filling(lines, length - sum(map(self.size, fixed)))
        return [head, *self._woven(filling, codes, needles, asked, questions)]

    def twice(self, lines: Iterator[str], length: int) -> list[Part]:
        """A document of at most `length` tokens: codes and `lines`, in turn, and the same
        once more in another order. All of the second half but its choices can be known,
        so it teaches finding much faster than questions do.
        """
        room, first = length // 2, list[Part]()
        while True:
            is_code = self._random.random() < _SHARE_OF_CODES
            (key, value), *_ = self._codes(1)
            text = WORDS.needle.format(key=key, value=value) if is_code else next(lines)
            part = Part(text + "\n")
            room -= self.size(part)
            if room < 0:
                break
            first.append(part)
        order = self._random.permutation(len(first))
        return [*first, *(Part(first[i].text, True) for i in order)]

    def size(self, part: Part) -> int:
        return len(self._encode(part.text))

    def _codes(self, count: int) -> list[tuple[str, str]]:
        names: dict[str, str] = {}
        pick, integers = self._random.choice, self._random.integers
        while len(names) < count:
            first, second = str(pick(self._first)), str(pick(WORDS.nouns))
            if first != second:
                names[f"{first}-{second}"] = str(integers(1_000_000, 10_000_000))
        return list(names.items())

    def _filling(self, lines: Iterator[str], room: int) -> list[Part]:
        if room < _LEAST_FILLING:
            raise DataError(
                f"a document with codes needs {_LEAST_FILLING - room} tokens more with "
                "this tokenizer; ask for longer ones"
            )
        filling: list[Part] = []
        for line in lines:
            part = Part(line + "\n")
            size = self.size(part)
            if size > room:
                break
            filling.append(part)
            room -= size
        return filling

    def _woven(
        self,
        filling: list[Part],
        codes: list[tuple[str, str]],
        needles: list[Part],
        asked: list[tuple[str, str]],
        questions: list[list[Part]],
    ) -> Iterator[Part]:
        """The filling with each code somewhere, and each question after its code."""
        share = self._random.random(len(codes)) * _LATEST_NEEDLE
        place = dict(zip(codes, share.tolist(), strict=True))
        events = [
            (place[code], [part]) for code, part in zip(codes, needles, strict=True)
        ]
        for number, (code, question) in enumerate(zip(asked, questions, strict=True)):
            last = number == len(asked) - 1
            start = place[code]
            at = 1.0 if last else start + (1 - start) * float(self._random.random())
            events.append((at, question))
        events.sort(key=lambda event: event[0])
        done = 0
        for at, parts in events:
            stop = max(done, round(at * len(filling)))
            yield from filling[done:stop]
            yield from parts
            done = stop


def _question(key: str, value: str) -> list[Part]:
    question = "\n\n" + WORDS.needle_question.format(key=key) + "\n"
    lead = WORDS.needle_answer.format(key=key)
    return [Part(question), Part(lead, True), Part(f" {value}", True), Part("\n")]


def noise() -> Iterator[str]:
    """Sentences that say nothing, over and over: the haystack of the plainest tasks."""
    return cycle(WORDS.noise)


def as_tokens(
    parts: Sequence[Part], encode: Encode, *, begin: int, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, loss weights) of a document: weight 1 on what can be known.

    begin, end: ids that stand before and after every document.
    """
    pieces, weights = [np.array([begin])], [np.zeros(1, np.uint8)]
    for part in parts:
        ids = np.asarray(encode(part.text), np.int64)
        pieces.append(ids)
        weights.append(np.full(ids.size, part.is_known, np.uint8))
    return (
        np.concatenate([*pieces, [end]]),
        np.concatenate([*weights, np.zeros(1, np.uint8)]),
    )
