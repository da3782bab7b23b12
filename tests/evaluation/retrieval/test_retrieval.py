"""Retrieval tasks: exact lengths, an oracle that reads the text and scores 100, a
guesser that scores its chance.
"""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval import (
    LANGUAGES,
    RULER,
    Haystack,
    RetrievalScores,
    make_sample,
)

TEXT = [
    "The baker counted the loaves. He had made forty, and forty were gone.\nThen he "
    "closed the shop.",
    "def add(a, b):\n    return a + b\n\n"
    + "A long line of words that goes on and on. " * 30,
    "Ponts i camins: la vila és lluny.\nNingú no ho sabia.",
]


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = [sentence for language in LANGUAGES.values() for sentence in language.noise]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT + words, trainer)
    return tokenizer


def sample_of(
    task: str,
    length: int,
    seed: int = 3,
    encode=bytes_of,
    language: str = "en",
    **options,
):
    return make_sample(
        task,
        length,
        encode,
        seed=seed,
        language=language,
        haystack=Haystack(TEXT, encode),
        **options,
    )


def read(task: str, text: str) -> list[str]:
    """An answer to the question at the end of an English `text`, by reading it:

    no code of the generator.
    """
    body, _, rest = text.rpartition("\n\n")
    question = rest.partition("\n")[0]
    if task.startswith("niah"):
        asked = re.search(
            r"(?:code of|codes of|for) ([\w\-, ]+?)(?: in the text|\?)", question
        )[1].split(", ")
        return [
            v
            for key in asked
            for v in re.findall(rf"The code of {key} is ([\w-]+)\.", body)
        ]
    if task == "vt":
        number = re.search(r"hold (\d+) ", question)[1]
        holders = re.findall(rf"The box (\w+) holds {number}\.", body)
        for name in holders:
            holders += re.findall(
                rf"The box (\w+) holds what the box {name} holds\.", body
            )
        return holders
    if task == "cwe":
        words = re.findall(r"^\d+\. (.+)$", body, re.M)
        top = {word for word, _ in collections.Counter(words).most_common(10)}
        return sorted(top, key=words.index)
    if task == "fwe":
        return [
            w for w, _ in collections.Counter(body.split("\n")[1:-1]).most_common(3)
        ]
    keeps = dict(re.findall(r"(\w+ \w+) lives in \w+ and keeps ([\w-]+)\.", body))
    if task == "qa_2":
        person = re.search(r"neighbour of (\w+ \w+) keep", question)[1]
        return [keeps[re.search(rf"{person} is a neighbour of (\w+ \w+)\.", body)[1]]]
    return [keeps[re.search(r"what does (\w+ \w+) keep", question)[1]]]


def hits_of(sample, answer: list[int]) -> np.ndarray:
    """What a greedy reader hits that writes `answer` and is right about everything before."""
    hits = np.zeros(len(sample.tokens), bool)
    first, last = sample.answer
    expected = sample.tokens[first:last].tolist()
    agree = [a == b for a, b in zip(answer, expected, strict=False)]
    hits[first - 1 : first - 1 + len(agree)] = agree
    return hits


@pytest.mark.parametrize("length", [9001, 12_288])
@pytest.mark.parametrize("task", RULER)
def test_a_reader_of_the_text_scores_100(task: str, length: int) -> None:
    scores = RetrievalScores()
    for seed in range(4):
        sample = sample_of(task, length, seed)
        text = bytes(sample.tokens[: sample.answer[0]].tolist()).decode()
        answers = read(task, text)
        assert answers == list(sample.texts)
        scores.add(sample, hits_of(sample, bytes_of(" " + ", ".join(answers))))
    assert scores.score(task, length).share == 1.0


@pytest.mark.parametrize("task", RULER)
def test_a_reader_without_the_text_scores_nothing(task: str) -> None:
    scores = RetrievalScores()
    for seed in range(20):
        sample, other = sample_of(task, 9001, seed), sample_of(task, 9001, 1000 + seed)
        scores.add(sample, hits_of(sample, other.tokens[slice(*other.answer)].tolist()))
    # Numbers of seven digits and pairs of 1,024: one in twenty would already be luck.
    assert scores.score(task).right <= 1


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", RULER)
def test_length_is_exact_and_the_answer_is_in_the_text(
    task: str, language: str, bpe: Tokenizer
) -> None:
    def encode(text: str) -> list[int]:
        return bpe.encode(text, add_special_tokens=False).ids

    for length in (7776, 7777, 10_001):
        sample = sample_of(task, length, encode=encode, language=language, prefix=(1,))
        assert len(sample.tokens) == length and sample.tokens[0] == 1
        assert sample.answer[1] == length
        before = bpe.decode(sample.tokens[1 : sample.answer[0]].tolist())
        for (start, stop), text in zip(sample.answers, sample.texts, strict=True):
            assert bpe.decode(sample.tokens[start:stop].tolist()) == " " + text
            assert text in before
        # What a tokenizer makes of lead and answer together is what stands in the row.
        whole = bpe.decode(sample.tokens[1:].tolist())
        tail = whole[whole.rindex("\n") + 1 :]
        assert encode(tail) == sample.tokens[-len(encode(tail)) :].tolist()


def test_equal_arguments_give_equal_tokens_and_seeds_differ() -> None:
    for task in RULER:
        a, b, c = (sample_of(task, 9001, seed).tokens for seed in (1, 1, 2))
        assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_depth_is_where_the_needle_is(depth: float) -> None:
    sample = sample_of("niah_single_2", 20_000, depth=depth)
    text = bytes(sample.tokens.tolist()).decode()
    at = text.index(f"is {sample.texts[0]}.") / len(text)
    assert abs(at - depth) < 0.05


def test_numbers_have_as_many_digits_as_are_asked_for() -> None:
    def values(task: str, digits: int, length: int = 2000) -> list[str]:
        sample = make_sample(task, length, bytes_of, seed=3, digits=digits)
        text = bytes(sample.tokens.tolist()).decode()
        return re.findall(r"The code of \S+ is (\d+)", text)

    for digits in (1, 3, 7, 12):
        found = values("niah_single_1", digits)
        assert len(found) == 2 and {len(value) for value in found} == {digits}
    plain = make_sample("niah_single_1", 2000, bytes_of, seed=3).tokens
    assert plain.tolist() == (
        make_sample("niah_single_1", 2000, bytes_of, seed=3, digits=7).tokens.tolist()
    )
    # More needles than there are numbers of a digit: no endless search, none twice.
    many = values("niah_multikey_2", 1, 20_000)
    assert len(set(many)) > 300 and {len(value) for value in many[:3]} == {1}


def test_published_parameters() -> None:
    needles = {
        n: (t.haystack, t.key_type, t.value_type, t.keys, t.values, t.queries)
        for n, t in RULER.items()
    }
    assert needles["niah_multikey_1"] == ("text", "words", "numbers", 4, 1, 1)
    assert needles["niah_multikey_3"] == ("needles", "uuids", "uuids", 1, 1, 1)
    assert needles["niah_multivalue"][4] == 4 and needles["niah_multiquery"][5] == 4
    assert RULER["vt"].hops == 4 and (RULER["cwe"].common, RULER["cwe"].uncommon) == (
        30,
        3,
    )
    assert len(RULER) == 13


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(DataError, match="niah_single_2 hides its needles in text"):
        make_sample("niah_single_2", 4096, bytes_of, seed=1)
    with pytest.raises(DataError, match="there is no retrieval task niah"):
        make_sample("niah", 4096, bytes_of, seed=1)
    with pytest.raises(DataError, match=r"needs .* tokens or more"):
        make_sample("niah_single_1", 200, bytes_of, seed=1)
    with pytest.raises(DataError, match=r"cwe needs \d+ tokens .* not 3000"):
        make_sample("cwe", 3000, bytes_of, seed=1)
    with pytest.raises(DataError, match="no text"):
        Haystack(["", "\n"], bytes_of)
    sample = sample_of("niah_single_1", 4096)
    with pytest.raises(DataError, match="sample of 4096 tokens"):
        RetrievalScores().add(sample, np.ones(4000, bool))


def test_scores_merge_and_travel() -> None:
    one, two = RetrievalScores(), RetrievalScores()
    for seed in range(6):
        sample = sample_of("niah_multivalue", 4096, seed)
        hits = np.ones(len(sample.tokens), bool)
        if seed % 2:
            hits[sample.answers[2][0]] = False
        (one if seed < 3 else two).add(sample, hits)
    one.merge(RetrievalScores.from_json(two.to_json()))
    score = one.score("niah_multivalue", 4096)
    assert (score.samples, score.right, score.parts, score.parts_right) == (
        6,
        3,
        24,
        21,
    )
    low, high = score.interval
    assert 0.18 < low < 0.19 and 0.81 < high < 0.82  # Wilson's interval of 3 of 6
