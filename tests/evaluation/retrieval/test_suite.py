"""Suites of samples as rows: exact lengths, controls, and no answer that is cut off."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from alia_ctx.config.evaluation import LanguageName, TaskName
from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval import (
    LANGUAGES,
    RULER,
    AnswerHits,
    RetrievalSettings,
    SampleRows,
    SampleSpec,
    TooShortError,
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


def test_noise_hides_needles_where_it_is_asked_for() -> None:
    settings = RetrievalSettings(("niah_single_2",), haystack="noise")
    rows = SampleRows(settings, [], bytes_of, 2048, texts=["The user's own text."])
    sample = rows.make(SampleSpec("niah_single_2", "en", 2048, 0))
    text = bytes(sample.tokens.tolist()).decode()
    assert "own text" not in text and LANGUAGES["en"].noise[0] in text
    settings = RetrievalSettings(("niah_single_2",))
    rows = SampleRows(settings, [], bytes_of, 2048, texts=["The user's own text."])
    sample = rows.make(SampleSpec("niah_single_2", "en", 2048, 0))
    assert "own text" in bytes(sample.tokens.tolist()).decode()


def test_settings_state_digits_where_they_are_not_the_published_ones() -> None:
    """Results of before there was a choice are still what they state."""
    assert "digits" not in RetrievalSettings().statement()
    assert RetrievalSettings(digits=3).statement()["digits"] == 3
    rows = SampleRows(RetrievalSettings(digits=3), (), bytes_of, 1000)
    assert len(rows.make(SampleSpec("passkey", "en", 1000, 0)).texts[0]) == 3
