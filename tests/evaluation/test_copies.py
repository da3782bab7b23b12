"""Errors that nobody knows: of one document, and of several that are copies of one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from alia_ctx.data.packing import PackedRow
from alia_ctx.evaluation import PositionBands
from alia_ctx.evaluation.held_out import copies_left_out, held_out_rows, long_documents
from alia_ctx.evaluation.tables import tables
from alia_ctx.evaluation.verdicts import Chain, Measured, claims, verdicts
from alia_ctx.workflow.measuring import Measurement

NATIVE, LONG = 4, 12


class Text:
    """Documents of tokens, of one source or of as many as are named."""

    where, fingerprint = "text", "0"

    def __init__(self, *texts: list[int], sources: tuple[int, ...] = ()) -> None:
        self.texts = [np.array(text) for text in texts]
        self.lengths = np.array([len(text) for text in texts])
        self.source_of = sources or (0,) * len(texts)
        self.sources = tuple("ab"[: max(self.source_of) + 1])

    def sources_of(self, documents: list[int]) -> list[int]:
        return [self.source_of[d] for d in documents]

    def document(self, number: int, start: int, stop: int) -> np.ndarray:
        return self.texts[number][start:stop]


A, B, C = [1, 2, 3, 4], [1, 2, 3, 9], [5, 6, 7, 8]


def test_documents_that_are_equal_word_for_word_are_one_draw() -> None:
    text: Any = Text(A, A, B, A, C)
    assert long_documents(text, 4, 3) == [0, 2, 4]
    assert copies_left_out(text, 4, 3) == 2
    # What is shown decides: these differ in what nobody sees.
    assert long_documents(text, 3, 9) == [0, 4]
    assert len(held_out_rows(text, context=4, length=4, documents=9)) == 3
    two: Any = Text(A, A, C, B, sources=(0, 1, 1, 0))
    assert long_documents(two, 4, 9) == [0, 2, 3]


def test_copies_are_stated_and_only_where_there_are_some() -> None:
    def settings(*texts: list[int]) -> Any:
        text: Any = Text(*texts)
        on = Measurement(text, 4, 9, (0, 4), 4, 64)
        return on.settings("positions")

    assert "copies_left_out" not in settings(A, B)
    assert settings(A, B, A)["copies_left_out"] == 1


def blocks(gain: float, error: float | None, documents: int = 3) -> dict[str, Any]:
    band = {"first": NATIVE, "last": LONG, "documents": documents}
    return {
        "block": NATIVE,
        "bands": [{**band, "gain": gain, "standard_error": error}],
    }


@pytest.mark.parametrize("gain", [-0.5, 0.5])
@pytest.mark.parametrize(
    ("error", "documents"), [(0.0, 3), (1e-17, 3), (None, 1), (0.0, 1), (0.1, 1)]
)
def test_a_gain_without_spread_has_no_standard_errors(
    gain: float, error: float | None, documents: int
) -> None:
    line = Measured("s", "s", LONG, {"blocks": blocks(gain, error, documents)})
    base = Measured("base", "base", NATIVE, {})
    (claim,) = claims([base, line], Chain("base", NATIVE, {"s": LONG}))
    assert claim.holds is None and "inf" not in claim.detail
    said = " ".join(verdicts([base, line], NATIVE))
    assert f"{gain:+.4f}" in said and "error not known" in said
    assert "inf" not in said and "standard errors" not in said


@pytest.mark.parametrize(("gain", "holds"), [(-0.5, False), (0.5, True)])
def test_the_sign_of_a_gain_counts(gain: float, holds: bool) -> None:
    line = Measured("s", "s", LONG, {"blocks": blocks(gain, 0.01)})
    (claim,) = claims([line], Chain("base", NATIVE, {"s": LONG}))
    assert claim.holds is holds


def positions(far: float, documents: int, spread: float = 0.0) -> dict[str, Any]:
    bands = PositionBands((0, NATIVE, LONG))
    for number in range(documents):
        row = PackedRow.from_documents([np.arange(LONG + 1)], LONG + 1)
        row.doc_ids[:] = number
        losses = np.r_[np.full(NATIVE, 2.0), np.full(LONG - NATIVE, far), np.nan]
        bands.add(row, losses + spread * number)
    return bands.to_json()


@pytest.mark.parametrize("documents", [1, 3])
def test_a_difference_without_spread_is_not_clear(documents: int) -> None:
    lines = [
        Measured(m, m, c, {"positions": positions(far, documents)}, "t")
        for m, c, far in (("base", NATIVE, 3.0), ("s", LONG, 2.9))
    ]
    found = claims(lines, Chain("base", NATIVE, {"s": LONG}))
    assert [c.holds for c in found if "clearly better" in c.claim] == [None]
    said = " ".join(verdicts(lines, NATIVE))
    assert "no error known" in said and "+- 0.0000" not in said and "nan" not in said


def test_no_table_shows_an_error_of_nothing() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    contents = {"positions": positions(3.0, 2), "blocks": blocks(0.5, 0.0)}
    for table in tables([Measured("s", "s", LONG, contents)]):
        console.print(table)
    text = console.export_text()
    assert "+- 0.0000" not in text and text.count("(error not known)") == 3
