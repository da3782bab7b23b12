"""Lists of words, counted in the text of the row by nothing but a regular expression."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer

from alia_ctx.evaluation.retrieval import LANGUAGES, Sample, TooShortError, make_sample
from tests.evaluation.retrieval.test_retrieval import bpe, bytes_of

__all__ = ["bpe"]  # a fixture


def text_before(sample: Sample, tokenizer: Tokenizer | None) -> str:
    """What a reader sees before the answer."""
    ids = sample.tokens[: sample.answer[0]].tolist()
    if tokenizer is None:
        return bytes(ids).decode(errors="replace")
    return str(tokenizer.decode(ids))


def made(task: str, length: int, language: str, seed: int, encode: Any) -> Sample:
    return make_sample(task, length, encode, seed=seed, language=language)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("tokens", ["bytes", "bpe"])
def test_frequent_words_are_those_that_a_count_finds(
    language: str, tokens: str, bpe: Tokenizer
) -> None:
    """At every length they are three, in one order, or the task does not fit."""
    tokenizer = bpe if tokens == "bpe" else None
    encode = bytes_of if tokenizer is None else lambda text: bpe.encode(text).ids
    fitted: collections.Counter[int] = collections.Counter()
    for length in (128, 192, 224, 256, 320, 384, 512, 777, 2048, 8192):
        for seed in range(3 if length > 1000 else 12):
            try:
                sample = made("fwe", length, language, seed, encode)
            except TooShortError:
                continue
            fitted[length] += 1
            assert len(sample.tokens) == length
            words = re.findall(r"^[A-Z]{6}$", text_before(sample, tokenizer), re.M)
            counted = collections.Counter(words)
            top = counted.most_common(4)
            assert [word for word, _ in top[:3]] == list(sample.texts)
            counts = [count for _, count in top]
            assert counts[0] > counts[1] > counts[2] > counts[3]
            if length >= 2048:  # as rank ** -2, where there is room for whole numbers
                total = counts[0] / 0.625
                expected = [0.625 * total / rank**2 for rank in (1, 2, 3, 4)]
                assert counts == pytest.approx(expected, abs=1)
    # a fit does not come and go with the seed; from 512 on every tokenizer has room
    assert all(fitted[n] == 12 for n in (512, 777)) and fitted[8192] == 3
    assert set(fitted.values()) <= {3, 12}


def counts_of_common(
    text: str, answers: Sequence[str]
) -> tuple[set[int], set[int], list[int]]:
    """(counts of the answers, counts of all other words, the numbers of the lines)"""
    lines = re.findall(r"^(\d+)\. (\S+)$", text, re.M)
    counted = collections.Counter(word for _, word in lines)
    common = {counted.pop(word) for word in answers}
    return common, set(counted.values()), [int(number) for number, _ in lines]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("length", [8192, 10_001, 32_768])
def test_common_words_come_30_times_and_all_others_3(
    length: int, language: str, bpe: Tokenizer
) -> None:
    def encode(text: str) -> list[int]:
        ids: list[int] = bpe.encode(text).ids
        return ids

    for seed in range(4 if length < 30_000 else 1):
        sample = made("cwe", length, language, seed, encode)
        text = text_before(sample, bpe)
        common, others, numbers = counts_of_common(text, sample.texts)
        assert (common, others) == ({30}, {3})
        assert numbers == list(range(1, len(numbers) + 1))
        places = [text.index(f". {word}\n") for word in sample.texts]
        assert places == sorted(places)
        # What is left is less than another word's lines, two of them at most.
        last = text.index(f"\n{len(numbers)}. ")
        rest = text[text.index("\n", last + 1) + 1 : text.rindex("\n\n")]
        assert len(encode(rest)) < 128


def test_a_tokenizer_that_joins_numbers_and_words_gets_whole_lists_too() -> None:
    """Tokens of a line are not the sum of those of its number and its word."""

    def encode(text: str) -> list[int]:
        ids = []
        for piece in re.findall(r"\d+7\. \w+|.", text, re.S):
            ids += [hash_of(piece)] if len(piece) > 1 else [ord(piece)]
        return ids

    known: dict[int, str] = {}

    def hash_of(piece: str) -> int:
        number = 1_000_000 + int.from_bytes(piece.encode(), "big") % 10**9
        known[number] = piece
        return number

    for length in (9001, 20_000):
        sample = made("cwe", length, "en", 1, encode)
        ids = sample.tokens[: sample.answer[0]].tolist()
        text = "".join(known.get(i) or chr(i) for i in ids)
        assert counts_of_common(text, sample.texts)[:2] == ({30}, {3})


def test_too_short_a_list_says_what_it_needs() -> None:
    for task, length in (("cwe", 3000), ("fwe", 200)):
        with pytest.raises(TooShortError, match=rf"{task} needs \d+ tokens .*{length}"):
            made(task, length, "en", 1, bytes_of)
