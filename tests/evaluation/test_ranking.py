"""Choices ranked: the means, the pairing by seed, and who can be told apart."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from alia_ctx.errors import DataError
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.ranking import bands_of, ranked

EDGES = (0, 4, 8)


def cell(losses: list[tuple[float, float]]) -> PositionBands:
    """A document each: mean losses in the two bands, four tokens each."""
    made = PositionBands(EDGES)
    data = made.to_json()
    data["documents"] = [
        {"source": 0, "document": n, "sums": [4 * a, 4 * b], "counts": [4, 4]}
        for n, (a, b) in enumerate(losses)
    ]
    return PositionBands.from_json(data)


def test_order_difference_and_error_by_hand() -> None:
    good = [cell([(1.0, 2.0), (1.2, 2.2)]), cell([(1.1, 2.1), (1.3, 2.3)])]
    bad = [cell([(1.4, 2.0), (1.6, 2.2)]), cell([(1.3, 2.1), (1.5, 2.3)])]
    first, second = ranked({"bad": bad, "good": good}, 0, 4)
    assert (first.name, second.name) == ("good", "bad")
    assert first.loss == pytest.approx(1.15) and first.behind == 0
    assert second.loss == pytest.approx(1.45)
    # differences by seed are 0.4 and 0.2
    assert second.behind == pytest.approx(0.3)
    assert second.error == pytest.approx(np.std([0.4, 0.2], ddof=1) / 2**0.5)
    assert second.is_clear and (second.seeds, second.documents) == (2, 2)
    # in the second band there is no difference to tell
    assert not ranked({"bad": bad, "good": good}, 4, 8)[1].is_clear


def test_one_seed_takes_its_error_from_the_documents() -> None:
    good, bad = [cell([(1.0, 0), (1.2, 0)])], [cell([(1.1, 0), (1.5, 0)])]
    second = ranked({"good": good, "bad": bad}, 0, 4)[1]
    # influences are ±0.1 and ±0.2: their difference ±0.1 a document, over 2 documents
    assert second.behind == pytest.approx(0.2)
    assert second.error == pytest.approx(np.std([0.1, 0.3], ddof=1) / 2**0.5)


def test_seeds_that_make_no_difference_are_one_draw() -> None:
    """No spread is no error of zero, from which anything is clearly behind."""
    good, bad = cell([(1.0, 0), (1.2, 0)]), cell([(1.1, 0), (1.5, 0)])
    once = ranked({"good": [good], "bad": [bad]}, 0, 4)[1]
    thrice = ranked({"good": [good] * 3, "bad": [bad] * 3}, 0, 4)[1]
    assert thrice.error == pytest.approx(once.error)
    assert thrice.is_clear == once.is_clear
    alike = ranked({"a": [cell([(1.0, 0)])] * 2, "b": [cell([(2.0, 0)])] * 2}, 0, 4)[1]
    assert alike.error is None and not alike.is_clear


def test_one_document_and_one_seed_have_no_error() -> None:
    second = ranked({"a": [cell([(1.0, 0)])], "b": [cell([(2.0, 0)])]}, 0, 4)[1]
    assert second.error is None and not second.is_clear


def test_the_whole_comes_before_its_bands() -> None:
    assert bands_of({"a": [cell([(1.0, 2.0)])]}) == [(0, 8), (0, 4), (4, 8)]
    assert bands_of({"a": [PositionBands((0, 8))]}) == [(0, 8)]


def short_cell(bands: int) -> PositionBands:
    """Two documents whose tokens reach into the first `bands` of three bands."""
    made = PositionBands((0, 4, 8, 16))
    data = made.to_json()
    counts = [4] * bands + [0] * (3 - bands)
    data["documents"] = [
        {"source": 0, "document": n, "sums": [n + c for c in counts], "counts": counts}
        for n in range(2)
    ]
    return PositionBands.from_json(data)


def test_bands_without_tokens_are_left_out() -> None:
    for bands, expected in (
        (1, [(0, 4)]),
        (2, [(0, 8), (0, 4), (4, 8)]),
        (3, [(0, 16), (0, 4), (4, 8), (8, 16)]),
    ):
        cells = {"a": [short_cell(bands)] * 2, "b": [short_cell(bands)] * 2}
        assert bands_of(cells) == expected
        for band in expected:
            told = [dataclasses.asdict(one) for one in ranked(cells, *band)]
            json.dumps(told, allow_nan=False)
    # what one of them alone has not can not be compared
    assert bands_of({"a": [short_cell(2)], "b": [short_cell(1)]}) == [(0, 4)]


def test_nothing_to_rank_is_said() -> None:
    with pytest.raises(
        DataError, match="b: no token was predicted at positions 4 to 7"
    ):
        ranked({"a": [short_cell(2)], "b": [short_cell(1)]}, 4, 8)
