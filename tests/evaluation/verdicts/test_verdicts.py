"""What is said of models: numbers with errors against the base, in both directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from alia_ctx.data.packing import PackedRow
from alia_ctx.evaluation import PositionBands
from alia_ctx.evaluation.retrieval import RetrievalScores
from alia_ctx.evaluation.tables import tables
from alia_ctx.evaluation.verdicts import Measured, verdicts

NATIVE, LONG = 4, 12


def positions(near: float, far: float, noise: float = 0.01) -> dict[str, Any]:
    """Six documents whose losses are `near` and `far`, and differ a little."""
    bands = PositionBands((0, NATIVE, LONG))
    # What two models share in their noise is no spread of their difference.
    own = np.random.default_rng([int(1000 * near), int(1000 * far)])
    random = np.random.default_rng(1)
    for number in range(6):
        row = PackedRow.from_documents([np.arange(LONG + 1)], LONG + 1)
        losses = np.r_[np.full(NATIVE, near), np.full(LONG - NATIVE, far), np.nan]
        row.doc_ids[:] = number
        drawn = random.normal(size=LONG + 1) + 1e-3 * own.normal(size=LONG + 1)
        bands.add(row, losses + noise * drawn)
    return bands.to_json()


def scores(length: int, right: int) -> dict[str, Any]:
    made = RetrievalScores()
    for number in range(10):
        made.count(("vt", "en", length, -1), number < right, [number < right])
    return made.to_json() | {"native_context": NATIVE, "left_out": {}}


def blocks(gain: float, error: float | None) -> dict[str, Any]:
    band = {"first": NATIVE, "last": LONG, "documents": 6}
    return {
        "block": NATIVE,
        "bands": [
            {
                "first": 0,
                "last": NATIVE,
                "documents": 6,
                "gain": 0.0,
                "standard_error": 0.0,
            },
            {**band, "gain": gain, "standard_error": error},
        ],
    }


BASE = Measured(
    "base",
    "base",
    NATIVE,
    {"positions": positions(2.0, 2.5), "retrieval": scores(NATIVE, 9)},
    "t",
)
GIVEN = Measured(
    "base, longer",
    "base",
    LONG,
    {"positions": positions(2.0, 7.0), "retrieval": scores(LONG, 0)},
    "t",
)


def stage(near: float, far: float, text: str = "t", **contents: Any) -> Measured:
    found = {"positions": positions(near, far), **contents}
    return Measured("32k", "32k", LONG, found, text)


def test_a_base_that_was_not_shown_its_own_context_is_no_measure() -> None:
    """Shown half of it, it would seem that the same model brings something."""
    half = replace(BASE, context=NATIVE // 2)
    said = verdicts([half, GIVEN, stage(1.9, 2.1)], NATIVE)
    assert "not shown its own 4 tokens" in said[0]
    assert not any("within the base's" in sentence for sentence in said)


def test_nothing_stands_for_a_base_that_is_gone() -> None:
    said = verdicts(
        [stage(1.9, 2.1), replace(BASE, name="s2", model="s2")], NATIVE, has_base=False
    )
    assert said[0].startswith("the base is not at hand")
    assert not any("the base's 4 tokens" in sentence for sentence in said)


def test_cost_and_gain_are_said_with_their_errors() -> None:
    line = stage(2.29, 2.1, blocks=blocks(0.4, 0.05), retrieval=scores(LONG, 8))
    said = verdicts([BASE, GIVEN, line], NATIVE)
    assert len(said) == 5
    assert "32k: within the base's 4 tokens it costs 0.29" in said[0]
    assert "past 4 tokens it brings 0.4" in said[1] and "shown 4 tokens" in said[1]
    assert "past 4 tokens it brings 4.9" in said[2] and "shown 12 tokens" in said[2]
    assert "+0.4000 +- 0.0500" in said[3] and "+8.0 standard errors" in said[3]
    assert "80% of 10" in said[4] and "the base 0% of 10" in said[4]
    assert all("+-" in sentence for sentence in said[:4])


def test_what_is_within_the_error_is_no_difference() -> None:
    said = verdicts([BASE, stage(2.0, 2.5, blocks=blocks(0.1, None))], NATIVE)
    assert "within the base's 4 tokens it shows no difference" in said[0]
    assert "(error not known)" in said[-1]


def test_nats_of_other_tokenizers_are_not_compared() -> None:
    [said] = verdicts([BASE, stage(1.0, 1.0, text="other")], NATIVE)
    assert "tokenizer is not base's" in said


def test_a_model_alone_is_held_against_itself() -> None:
    said = verdicts([BASE, GIVEN], NATIVE)
    assert "base: shown 12 tokens in place of its 4 it loses 4.5" in said[0]
    assert "retrieval at 4 tokens (the base's own length): 90% of 10" in said[1]
    assert "retrieval at 12 tokens: 0% of 10" in said[2]


def test_the_base_is_the_first_line_of_every_table() -> None:
    lines = [BASE, GIVEN, stage(2.0, 2.0, retrieval=scores(LONG, 8))]
    for table in tables(lines):
        first = list(table.columns[0].cells)
        assert first[0] in ("base", "vt")
        assert "base" in first[0] or table.columns[1].header == "base"
