"""No tokenizer gives a score to who reads nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from alia_ctx.evaluation.retrieval import (
    LANGUAGES,
    PASSKEY,
    RULER,
    Haystack,
    RetrievalSettings,
    SampleRows,
    TooShortError,
    UnspelledError,
    make_sample,
    passkey_specs,
    ruler_specs,
)

TEXT = ["One line of text.\nAnother line of it, a longer one."]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters_only(text: str) -> list[int]:
    """Leaves out what it does not know, as a BPE without an unknown token does."""
    tokenizer = Tokenizer(
        models.BPE({c: i for i, c in enumerate(LETTERS + ".\n ")}, [])
    )
    return list(tokenizer.encode(text.lower()).ids)


def no_capitals(text: str) -> list[int]:
    """Leaves capitals out, and has digits."""
    known = LETTERS + "0123456789.-?\n "
    return [known.index(letter) for letter in text if letter in known]


def words(text: str) -> list[int]:
    """Whole words; all that it does not know are one."""
    known = " ".join(" ".join(each.noise) for each in LANGUAGES.values()).split()
    ids = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", *known]))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return list(tokenizer.encode(text).ids)


def masked_digits(text: str) -> list[int]:
    """One id for all digits, as some normalisers make of numbers."""
    return [ord("0") if letter.isdigit() else ord(letter) for letter in text]


def uncased(text: str) -> list[int]:
    """Neither capitals nor accents: what is left tells all words apart."""
    plain = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    return list(plain.normalize_str(text).encode())


Encode = Callable[[str], list[int]]
NUMBERS = [PASSKEY, "niah_single_1", "niah_multikey_1", "niah_multivalue", "vt"]


def made(task: str, encode: Encode, language: str = "en") -> object:
    haystack = Haystack(TEXT, encode)
    return make_sample(
        task, 20_000, encode, seed=1, language=language, haystack=haystack
    )


@pytest.mark.parametrize("encode", [letters_only, words, masked_digits])
@pytest.mark.parametrize("task", NUMBERS)
def test_an_answer_that_the_tokenizer_does_not_spell_is_no_sample(
    task: str, encode: Encode
) -> None:
    with pytest.raises(UnspelledError, match="does not tell"):
        made(task, encode)


@pytest.mark.parametrize("encode", [words, no_capitals])
@pytest.mark.parametrize("task", ["fwe", "vt", "qa_1"])
def test_nor_is_one_whose_names_it_does_not_spell(task: str, encode: Encode) -> None:
    with pytest.raises(UnspelledError, match="does not tell"):
        made(task, encode)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", [PASSKEY, *RULER])
def test_neither_capitals_nor_accents_are_needed(task: str, language: str) -> None:
    made(task, uncased, language)


def test_the_other_tasks_are_measured_and_the_reason_is_said() -> None:
    settings = RetrievalSettings(tasks=("niah_single_1", "vt"), samples=2)
    rows = SampleRows(settings, (), no_capitals, 2048)
    specs, left_out = ruler_specs(settings, rows, [2048])
    assert {spec.task for spec in specs} == {"niah_single_1"}
    assert (
        list(left_out) == ["vt at 2048"] and "does not tell" in left_out["vt at 2048"]
    )
    lost = SampleRows(settings, (), words, 2048)
    with pytest.raises(UnspelledError, match="no retrieval task fits"):
        ruler_specs(settings, lost, [2048])
    with pytest.raises(UnspelledError):
        passkey_specs(settings, lost, 2048, 128)


def test_a_row_that_is_too_short_is_still_called_so() -> None:
    settings = RetrievalSettings(tasks=("vt",), samples=1)
    with pytest.raises(TooShortError):
        ruler_specs(settings, SampleRows(settings, (), no_capitals, 64), [64])


def test_lines_that_become_nothing_hide_nothing() -> None:
    text = ["\u4e00\u4e8c\nabc def\n\u4e09"]
    lines = Haystack(
        text, lambda line: [ord(c) for c in line if c.isascii() and c > "\n"]
    )
    assert [len(line) for line in lines._documents[0]] == [7]
