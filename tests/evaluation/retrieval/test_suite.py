"""Suites of samples as rows: exact lengths, controls, and no answer that is cut off."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from alia_ctx.config.evaluation import LanguageName, TaskName
from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval import (
    LANGUAGES,
    PASSKEY,
    RULER,
    AnswerHits,
    RetrievalSettings,
    SampleRows,
    SampleSpec,
    TooShortError,
    make_sample,
    passkey_specs,
    ruler_specs,
)

SETTINGS = RetrievalSettings(("niah_single_1", "qa_1", "cwe"), ("en", "eu"), samples=3)


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def rows_of(specs: Any = (), row_length: int = 4096) -> SampleRows:
    return SampleRows(SETTINGS, specs, bytes_of, row_length)


def test_configuration_and_suite_name_the_same() -> None:
    assert get_args(TaskName) == tuple(RULER)
    assert get_args(LanguageName) == tuple(LANGUAGES)


def test_short_samples_share_rows_and_are_whole() -> None:
    specs, left_out = ruler_specs(SETTINGS, rows_of(), [1024, 4096])
    assert set(left_out) == {"cwe at 1024", "cwe at 4096"}
    assert len(specs) == 2 * 2 * 2 * 3
    rows = rows_of(specs)
    assert len(rows) == 12 // 4 + 12
    seen = []
    for number in range(len(rows)):
        for piece, (index, sample) in rows[number].pieces.samples.items():
            start = rows[number].row.doc_offsets[piece]
            tokens = rows[number].row.tokens(start, start + len(sample.tokens))
            assert np.array_equal(tokens, sample.tokens)
            assert len(tokens) == specs[index].length
            seen.append(index)
    assert sorted(seen) == list(range(len(specs)))


def answered(rows: SampleRows, right: set[int], parts: int = 1) -> AnswerHits:
    """Hits of a reader that is right about `right`, each rank having every nth token."""
    total = AnswerHits()
    for rank in range(parts):
        local = AnswerHits()
        for number in range(len(rows)):
            row = rows[number]
            losses = np.full(row.row.length, np.nan)
            losses[rank::parts] = 1.0
            hits = np.zeros(row.row.length, bool)
            for piece, (index, sample) in row.pieces.samples.items():
                start = int(row.row.doc_offsets[piece])
                first, last = sample.answer
                hits[start + first - 1 : start + last - 1] = index in right
            local.add(row.pieces, losses, hits & ~np.isnan(losses))
        total.merge(AnswerHits.from_json(local.to_json()))
    return total


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_answers_are_put_together_from_all_ranks(parts: int) -> None:
    specs, _ = ruler_specs(SETTINGS, rows_of(), [1024])
    rows = rows_of(specs)
    scores = answered(rows, {0, 1, 5}, parts).scores(len(specs))
    assert (scores.score().samples, scores.score().right) == (12, 3)


def test_an_answer_that_nobody_measured_is_an_error() -> None:
    specs, _ = ruler_specs(SETTINGS, rows_of(), [1024])
    rows = rows_of(specs)
    whole = answered(rows, set())
    with pytest.raises(DataError, match="12 of 13 samples were measured"):
        whole.scores(13)
    lost = answered(rows, set())
    for entry in lost._answers.values():
        entry["seen"][-1] = 0
    with pytest.raises(DataError, match="an answer was cut off"):
        lost.scores(12)
    with pytest.raises(DataError, match="their answers would be cut off"):
        rows_of([SampleSpec("qa_1", "en", 5000, 0)])


@pytest.mark.parametrize(("samples", "each"), [(3, 1), (8, 2), (10, 2), (20, 5)])
def test_a_quarter_of_the_samples_lies_at_each_depth(samples: int, each: int) -> None:
    settings = replace(SETTINGS, samples=samples)
    specs = passkey_specs(settings, rows_of(), 4096, 4096)
    cells = Counter((spec.length, spec.depth) for spec in specs)
    assert {*cells.values()} == {each} and len({spec.depth for spec in specs}) == 10


def test_the_passkey_grid_has_ten_depths_at_each_length() -> None:
    specs = passkey_specs(SETTINGS, rows_of(), 4096, 1000)
    cells = {(spec.length, spec.depth) for spec in specs}
    assert {length for length, _ in cells} == {512, 1000, 1024, 2048, 4096}
    assert len(cells) == 5 * 10
    rows = rows_of(specs)
    scores = answered(rows, set(range(len(specs)))).scores(len(specs))
    for depth in range(10):
        score = scores.score("passkey", 4096, depth=depth)
        assert score.samples == score.right == 1


def test_nothing_fits_into_too_little() -> None:
    with pytest.raises(TooShortError, match="tokens or more"):
        ruler_specs(SETTINGS, rows_of(), [100])
    with pytest.raises(TooShortError):
        passkey_specs(SETTINGS, rows_of(), 64, 64)


def least_length(task: str, language: str) -> int:
    """Tokens that a task asks for where it has far too few."""
    with pytest.raises(TooShortError) as raised:
        make_sample(task, 100, bytes_of, seed=1, language=language)
    return int(re.findall(r"needs (\d+)", str(raised.value))[0])


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_not_left_out_fits_with_every_sample(language: str) -> None:
    """Near the least length, which fits the words of some drawings and not of others."""
    for task in RULER:
        settings = RetrievalSettings((task,), (language,), samples=5, haystack="noise")
        least = least_length(task, language)
        kept = []
        step = 200 if task == "cwe" else 3  # of which a word has 30 lines
        for length in (least + n * step for n in (-4, -2, -1, 0, 1, 2, 4, 7)):
            rows = SampleRows(settings, [], bytes_of, length)
            try:
                specs, left_out = ruler_specs(settings, rows, [length])
            except TooShortError:
                continue
            kept.append(length)
            assert len(specs) == 5 and not left_out
            for row in SampleRows(settings, specs, bytes_of, length):
                for _, sample in row.pieces.samples.values():
                    said = bytes(sample.tokens[slice(*sample.answer)].tolist()).decode()
                    assert len(sample.tokens) == length
                    assert said == " " + ", ".join(sample.texts)
        assert kept[-1] == least + 7 * step


@pytest.mark.parametrize("language", LANGUAGES)
def test_passkeys_fit_at_every_length_of_the_grid(language: str) -> None:
    settings = RetrievalSettings(languages=(language,), samples=16)
    rows = SampleRows(settings, [], bytes_of, 4096)
    least = least_length(PASSKEY, language)
    for native in range(least - 10, least + 30, 2):
        specs = passkey_specs(settings, rows, 512, native)
        lengths = {spec.length for spec in specs}
        assert len(specs) == len(lengths) * 10 * 4 and 512 in lengths
        assert all(len(rows.make(s).tokens) == s.length for s in specs)


def test_a_task_that_some_languages_have_room_for_is_kept_for_them() -> None:
    settings = RetrievalSettings(("vt",), tuple(LANGUAGES), samples=2)
    rows = SampleRows(settings, [], bytes_of, 1024)
    seen: set[int] = set()
    for length in range(400, 700, 20):
        try:
            specs, left_out = ruler_specs(settings, rows, [length])
        except TooShortError:
            continue
        kept = {spec.language for spec in specs}
        without = {f"vt ({name}) at {length}" for name in set(LANGUAGES) - kept}
        assert set(left_out) == without
        seen.add(len(kept))
    assert len(seen) > 1 and 5 in seen


def test_noise_hides_needles_where_it_is_asked_for() -> None:
    settings = RetrievalSettings(("niah_single_2",), haystack="noise")
    rows = SampleRows(
        settings, [], bytes_of, 2048, texts=lambda _: ["The user's own text."]
    )
    sample = rows.make(SampleSpec("niah_single_2", "en", 2048, 0))
    text = bytes(sample.tokens.tolist()).decode()
    assert "own text" not in text and LANGUAGES["en"].noise[0] in text
    settings = RetrievalSettings(("niah_single_2",))
    rows = SampleRows(
        settings, [], bytes_of, 2048, texts=lambda _: ["The user's own text."]
    )
    sample = rows.make(SampleSpec("niah_single_2", "en", 2048, 0))
    assert "own text" in bytes(sample.tokens.tolist()).decode()


def test_settings_state_digits_where_they_are_not_the_published_ones() -> None:
    """Results of before there was a choice are still what they state."""
    assert "digits" not in RetrievalSettings().statement()
    assert RetrievalSettings(digits=3).statement()["digits"] == 3
    rows = SampleRows(RetrievalSettings(digits=3), (), bytes_of, 1000)
    assert len(rows.make(SampleSpec("passkey", "en", 1000, 0)).texts[0]) == 3


def test_a_sample_is_the_same_whatever_else_is_asked() -> None:
    """Its haystack is of its own length, not of the longest."""
    words = " ".join(f"word{n}." for n in range(4000))

    def texts(tokens: int) -> list[str]:
        return [words[:tokens]]

    spec = SampleSpec("niah_single_2", "en", 1024, 0)
    alone = SampleRows(SETTINGS, [spec], bytes_of, 1024, texts=texts)
    longer = SampleSpec("niah_single_2", "en", 4096, 0)
    beside = SampleRows(SETTINGS, [longer, spec], bytes_of, 4096, texts=texts)
    assert alone.sample(0).tokens.tolist() == beside.sample(1).tokens.tolist()
    assert len(beside.sample(0).tokens) == 4096
