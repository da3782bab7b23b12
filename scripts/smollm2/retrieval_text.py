"""Documents that teach retrieval: facts hidden in other text, and questions about them.

A document is lines of other documents with facts between them, and at random places
behind a fact the question about it with its answer. Facts and questions are worded as in
`alia_ctx.evaluation.retrieval`, whose rows are drawn from other seeds and hide their facts
in other text: what is measured there is whether a model finds, not whether it has seen.
Weights: the answers count alone. Nobody could predict the facts' own values, and the text
between is trained on where it comes from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from alia_ctx.data.tokens.store import write_store
from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval.draws import Draws
from alia_ctx.evaluation.retrieval.haystack import Haystack
from alia_ctx.evaluation.retrieval.languages import LANGUAGES
from alia_ctx.progress import say

Encode = Callable[[str], Sequence[int]]
Part = tuple[np.ndarray, bool]  # tokens, and whether they are trained on

EOS = 2  # <|im_end|>
VOCABULARY = 49_152
SEED = 2026

# How often each sort of question is asked, of all.
_SORTS = {
    "number": 0.3,
    "uuid": 0.15,
    "both_uuid": 0.1,
    "values": 0.15,
    "keys": 0.15,
    "variables": 0.15,
}


@dataclass(frozen=True)
class RetrievalMix:
    """What the documents hide: a question for each `every` tokens on average, and which
    share of the documents hides its facts among similar ones, or in noise, instead of
    text.
    """

    every: int = 120
    similar: float = 0.3
    noise: float = 0.2


def write_retrieval(output: Path, *, tokens: int, longest: int) -> None:
    """Write the store OUTPUT/text/retrieval of about `tokens` tokens unless it is there.

    One document in 16 has `longest` tokens, the others any length from 512 on, each
    power of two as often as any other.
    """
    store = output / "text" / "retrieval"
    if store.with_name("retrieval.weights").is_file():
        return
    random = np.random.default_rng(SEED)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        drawn = int(np.exp(random.uniform(np.log(512), np.log(longest))))
        lengths.append(longest if random.random() < 1 / 16 else drawn)
    workers = ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), _begin, (output,)
    )
    with workers as pool:
        made = list(pool.map(_make, range(len(lengths)), lengths, chunksize=4))
    write_store(store, [ids for ids, _ in made], VOCABULARY, [w for _, w in made])
    answers = sum(int(weights.sum()) for _, weights in made)
    say(
        f"retrieval: {len(made):,} documents, {sum(lengths):,} tokens, "
        f"{answers:,} of them answers"
    )


_shared: tuple[Haystack, Encode] | None = None


def _begin(output: Path) -> None:
    """What a worker needs: text to hide facts in, and the tokenizer."""
    global _shared
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(output / "hf" / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    texts = []
    for name in ("short", "manuals", "code"):
        with open(output / "text" / f"{name}.jsonl", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"][:40_000] for line in islice(lines, 60)]
    _shared = Haystack(texts, encode), encode


def _make(number: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    assert _shared is not None
    random = np.random.default_rng([SEED, number, length])
    return retrieval_document(length, *_shared, random)


def retrieval_document(
    length: int,
    haystack: Haystack,
    encode: Encode,
    random: np.random.Generator,
    mix: RetrievalMix | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int64 [length], weights uint8 [length]) of a document that ends in EOS."""
    parts = _Writer(random, encode, haystack, mix or RetrievalMix()).write(length)
    tokens = np.concatenate([ids for ids, _ in parts])[: length - 1]
    weights = np.concatenate([np.full(len(ids), w, np.uint8) for ids, w in parts])
    return np.append(tokens, EOS), np.append(weights[: length - 1], np.uint8(1))


class _Writer:
    """Writes one document by its generator of random numbers."""

    def __init__(
        self,
        random: np.random.Generator,
        encode: Encode,
        haystack: Haystack,
        mix: RetrievalMix,
    ) -> None:
        self._random, self._encode, self._mix = random, encode, mix
        self._words = LANGUAGES["en"]
        self._draws = Draws(random, self._words)
        self._lines = haystack.lines(random)

    def write(self, length: int) -> list[Part]:
        """Parts of at least `length` tokens in all, and few more."""
        events: list[tuple[float, int, list[Part]]] = []
        said = 0
        while said < length // 2 and len(events) < 2 * length // self._mix.every:
            facts, question = self._facts()
            places = sorted(self._random.random(len(facts)).tolist())
            # Half of the questions stand at the end, about facts anywhere before; the
            # others in between, so that every distance is asked for.
            asked = (
                1.0
                if self._random.random() < 0.5
                else self._random.uniform(places[-1], 1)
            )
            for place, parts in [*zip(places, facts, strict=True), (asked, question)]:
                events.append((place, len(events), parts))
                said += sum(len(ids) for ids, _ in parts)
        events.sort(key=lambda event: event[:2])
        filling, room = self._filling(), max(0, length - said)
        out: list[Part] = [self._line(self._words.instruction, trained=False)]
        filled = len(out[0][0])
        for place, _, parts in events:
            while filled < place * room:
                out.append(next(filling))
                filled += len(out[-1][0])
            out += parts
        while filled + said < length:
            out.append(next(filling))
            filled += len(out[-1][0])
        return out

    def _line(self, text: str, trained: bool = True) -> Part:
        return np.asarray(self._encode(text + "\n"), np.int64), trained

    def _filling(self) -> Iterator[Part]:
        """Similar facts, noise, or text; one of them for the whole document."""
        choice = self._random.random()
        if choice < self._mix.similar:
            uuids = self._random.random() < 0.5
            while True:
                key, value = self._key(uuids), self._value(uuids)
                fact = self._words.needle.format(key=key, value=value)
                yield self._line(fact, trained=False)
        if choice < self._mix.similar + self._mix.noise:
            noise = [
                self._line(sentence, trained=False) for sentence in self._words.noise
            ]
            while True:
                yield from noise
        for line in self._lines:
            yield line, False

    def _key(self, uuid: bool) -> str:
        return self._draws.fresh(self._draws.uuid if uuid else self._draws.pair)

    def _value(self, uuid: bool) -> str:
        if uuid:
            return self._draws.fresh(self._draws.uuid)
        return self._draws.fresh(lambda: str(self._random.integers(10**6, 10**7)))

    def _facts(self) -> tuple[list[list[Part]], list[Part]]:
        """Facts in the order in which they stand, and the question that comes after them."""
        words = self._words
        sort = self._random.choice(list(_SORTS), p=list(_SORTS.values()))
        if sort == "variables":
            value = str(self._random.integers(10_000, 100_000))
            names = [
                self._draws.fresh(self._draws.coded)
                for _ in range(self._random.integers(2, 6))
            ]
            texts = [words.assign.format(name=names[0], value=value)]
            texts += [words.copy.format(name=b, other=a) for a, b in pairwise(names)]
            question = words.variables_question.format(value=value)
            lead = words.variables_answer.format(value=value)
            return self._stated(texts), self._asked(question, lead, names)
        uuid_key, uuid_value = sort == "both_uuid", sort in ("uuid", "both_uuid")
        keys = 1 if sort != "keys" else int(self._random.integers(2, 5))
        values = 1 if sort != "values" else int(self._random.integers(2, 5))
        given = {
            self._key(uuid_key): [self._value(uuid_value) for _ in range(values)]
            for _ in range(keys)
        }
        key = ", ".join(given)
        question, lead = {
            "values": (words.values_question, words.values_answer),
            "keys": (words.keys_question, words.keys_answer),
        }.get(sort, (words.needle_question, words.needle_answer))
        texts = [
            words.needle.format(key=key, value=value)
            for key, several in given.items()
            for value in several
        ]
        answers = [value for several in given.values() for value in several]
        if sort == "keys":  # stated in another order than asked for
            texts = [texts[i] for i in self._random.permutation(len(texts))]
        return (
            self._stated(texts),
            self._asked(question.format(key=key), lead.format(key=key), answers),
        )

    def _stated(self, texts: Sequence[str]) -> list[list[Part]]:
        return [[self._line(text, trained=False)] for text in texts]

    def _asked(self, question: str, lead: str, answers: Sequence[str]) -> list[Part]:
        """Question and lead, and the answers as they continue the lead's tokens."""
        given = list(self._encode(lead))
        whole = list(self._encode(f"{lead} {', '.join(answers)}\n"))
        if whole[: len(given)] != given:
            raise DataError(f"{lead!r} is tokenised otherwise where text follows it")
        return [
            self._line("\n\n" + question, trained=False),
            (np.asarray(given, np.int64), False),
            (np.asarray(whole[len(given) :], np.int64), True),
        ]
