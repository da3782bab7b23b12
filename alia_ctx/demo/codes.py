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

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, cycle
from pathlib import Path
from textwrap import wrap

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
            part = self._sentence() if is_code else Part(next(lines) + "\n")
            room -= self.size(part)
            if room < 0:
                break
            first.append(part)
        return self._said_twice(first)

    def drill(self, length: int) -> list[Part]:
        """`twice` of codes alone, all sentences of as many tokens: what is to be found lies
        at few distances. Nothing else got so small a model to find anything within a
        million tokens (docs/log.md).
        """
        first = [self._sentence()]
        size = self.size(first[0])
        while len(first) < length // 2 // size:
            part = self._sentence()
            if self.size(part) == size:
                first.append(part)
        return self._said_twice(first)

    def _sentence(self) -> Part:
        (key, value), *_ = self._codes(1)
        return Part(WORDS.needle.format(key=key, value=value) + "\n")

    def _said_twice(self, first: Sequence[Part]) -> list[Part]:
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


def sentences(times: int = 2000) -> list[str]:
    """All that the documents say besides their text, for a tokenizer to learn: text in
    another language would cut it in letters, of which a short document holds few.
    """
    names = [
        f"{first}-{second}" for first in WORDS.adjectives for second in WORDS.nouns
    ]
    fixed = [WORDS.instruction, *WORDS.noise]
    asked = [WORDS.needle_question, WORDS.needle_answer]
    return [
        *(words.format(key=name) for name in names for words in asked),
        *(words for words in fixed for _ in range(times)),
    ]


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


# --- the demo's stores ------------------------------------------------------------------

# Store -> length of its documents and its tokens. Of the shortest two thirds are drills.
STORES: Mapping[str, tuple[int, int]] = {
    "codes128": (128, 900_000),
    "codes1k": (1024, 400_000),
    "codes5k": (5120, 400_000),
}
HELD_OUT_FILE = "heldout_codes.jsonl"
_BOS, _EOS = 1, 2  # of the demo's tokenizer
_CODES_EACH = 75  # tokens of a document for each code that it asks for
_LINE = 300  # characters; longer lines are wrapped


def build_codes(text: Path, tokenizer: Path, out: Path, *, seed: int = 7) -> None:
    """Write the stores of `STORES` in `out`, woven into the lines of the jsonl files in
    `text`, and its held-out documents with codes of their own as `HELD_OUT_FILE`.

    tokenizer: the demo's, with 2,048 tokens. DataError where the text has no line.
    """
    from tokenizers import Tokenizer

    from alia_ctx.data.tokens import write_store

    reader = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    @lru_cache(maxsize=1 << 18)
    def encode(words: str) -> list[int]:
        ids: list[int] = reader.encode(words, add_special_tokens=False).ids
        return ids

    files = sorted(f for f in text.glob("*.jsonl") if not f.stem.startswith("heldout"))
    lines = [line for file in files for document in _texts(file) for line in document]
    if not lines:
        raise DataError(f"{text}: has no line of text to weave codes into")
    for number, (name, (length, tokens)) in enumerate(STORES.items()):
        writer = CodeWriter(encode, seed + number, training=True)
        drawn = np.random.default_rng([seed, number])
        made = list(_documents(writer, lines, length, tokens, drawn, encode))
        ids, weights = zip(*made, strict=True)
        write_store(out / name, ids, reader.get_vocab_size(), weights)
    writer = CodeWriter(encode, seed + len(STORES), training=False)
    longest = max(length for length, _ in STORES.values())
    with (text / HELD_OUT_FILE).open("w", encoding="utf-8") as stream:
        for document in _texts(text / "heldout.jsonl"):
            # a little more than is shown, as a cut line may leave less
            parts = writer.document(cycle(document), longest + 200, _CODES_EACH)
            words = "".join(part.text for part in parts)
            stream.write(json.dumps({"text": words}, ensure_ascii=False) + "\n")


def _documents(
    writer: CodeWriter,
    lines: Sequence[str],
    length: int,
    tokens: int,
    drawn: np.random.Generator,
    encode: Encode,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Documents of `length` tokens or a few less, `tokens` in all."""
    room, done = length - 2, 0
    is_short = length == min(size for size, _ in STORES.values())
    while done < tokens:
        start = int(drawn.integers(len(lines)))
        text = (lines[(start + n) % len(lines)] for n in count())
        filling = noise() if drawn.random() < 0.5 else text
        each = 2 * _CODES_EACH if is_short else _CODES_EACH
        makers: dict[str, Callable[[], list[Part]]] = {
            "drill": lambda: writer.drill(room),
            "twice": lambda f=filling: writer.twice(f, room),  # type: ignore[misc]
            "asked": lambda f=filling, e=each: writer.document(f, room, e),  # type: ignore[misc]
        }
        shares = (0.6, 0.15, 0.25) if is_short else (0.0, 0.7, 0.3)
        parts = makers[str(drawn.choice(list(makers), p=shares))]()
        ids, weights = as_tokens(parts, encode, begin=_BOS, end=_EOS)
        done += ids.size
        yield ids, weights


def _texts(file: Path) -> Iterator[list[str]]:
    """The lines of each document of a jsonl file, without empty ones."""
    with file.open(encoding="utf-8") as stream:
        for record in stream:
            whole = json.loads(record)["text"].splitlines()
            yield [
                part
                for line in whole
                if line.strip()
                for part in ([line] if len(line) <= _LINE else wrap(line, _LINE))
            ]
