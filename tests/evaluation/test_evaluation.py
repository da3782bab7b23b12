"""Loss by position: sums, comparison of models, report."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import DataError
from alia_ctx.evaluation import (
    PositionBands,
    judge,
    loss_table,
    paired_difference,
    write_report,
)
from alia_ctx.evaluation.verdicts import Chain, Measured, claims

EDGES = (0, 4, 8)
NAN = math.nan


def row_of(*lengths: int, length: int) -> PackedRow:
    return PackedRow.from_documents([np.arange(n) for n in lengths], length=length)


def losses_of(row: PackedRow, seed: int, mean: float = 3.0) -> np.ndarray:
    """Random losses where the row predicts something, nan elsewhere."""
    values = (
        np.random.default_rng(seed).gamma(4.0, mean / 4, row.length).astype(np.float32)
    )
    return np.where(row.targets() >= 0, values, NAN)


# --- sums -----------------------------------------------------------------------------


def test_bands_of_a_row_by_hand() -> None:
    row = row_of(3, 6, length=11)
    losses = np.array([1, 2, NAN, 10, 20, 30, 40, 50, NAN, NAN, NAN], dtype=np.float32)
    bands = PositionBands(EDGES)
    bands.add(row, losses)
    near, far = bands.bands()
    assert (near.loss, near.tokens, near.documents) == (
        (1 + 2 + 10 + 20 + 30 + 40) / 6,
        6,
        2,
    )
    assert (far.loss, far.tokens, far.documents) == (50.0, 1, 1)
    assert (bands.tokens, bands.documents, bands.beyond) == (7, 2, 0)


def test_an_empty_band_has_no_loss() -> None:
    bands = PositionBands(EDGES)
    bands.add(row_of(3, length=3), np.array([1, 2, NAN]))
    assert math.isnan(bands.band(4, 8).loss) and bands.band(4, 8).tokens == 0


def test_positions_past_the_last_edge_are_counted_apart() -> None:
    bands = PositionBands(EDGES)
    row = row_of(10, length=10)
    bands.add(row, np.where(np.arange(10) < 9, 1.0, NAN))
    assert (bands.tokens, bands.beyond) == (8, 1)


def test_a_document_shown_in_blocks_lands_at_its_own_positions() -> None:
    losses = losses_of(row_of(8, length=8), 0)
    losses[3] = NAN  # the last token of the first block predicts nothing
    whole, blocks = PositionBands(EDGES), PositionBands(EDGES)
    whole.add(row_of(8, length=8), losses)
    blocks.add(row_of(4, length=4), losses[:4], position_offset=[0])
    blocks.add(row_of(4, length=4), losses[4:], position_offset=[4])
    assert blocks.to_json() == whole.to_json()


@given(
    st.lists(
        st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=4
    ),
    st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_or_counted_twice(rows: list[list[int]], seed: int) -> None:
    bands = PositionBands((0, 3, 10, 64))
    total, count = 0.0, 0
    for number, lengths in enumerate(rows):
        row = row_of(*lengths, length=sum(lengths) + number)
        losses = losses_of(row, seed + number)
        bands.add(row, losses)
        total += float(np.nansum(losses, dtype=np.float64))
        count += int(np.sum(~np.isnan(losses)))
    _, curve_loss, curve_tokens = bands.curve()
    assert sum(band.tokens for band in bands.bands()) == curve_tokens.sum() == count
    assert sum(
        band.loss * band.tokens for band in bands.bands() if band.tokens
    ) == pytest.approx(total, rel=1e-12)
    assert float(curve_loss @ curve_tokens) == pytest.approx(total, rel=1e-12)


def test_the_curve_is_the_mean_at_each_position_near_the_start() -> None:
    bands = PositionBands((0, 64), per_octave=2)
    first, second = row_of(20, length=20), row_of(30, length=30)
    one, two = losses_of(first, 1), losses_of(second, 2)
    bands.add(first, one)
    bands.add(second, two)
    positions, losses, tokens = bands.curve()
    assert positions[0] == 0 and tokens[0] == 2
    assert losses[0] == pytest.approx((one[0] + two[0]) / 2)
    assert (np.diff(positions) > 0).all()


def test_merged_parts_equal_the_whole_and_survive_json() -> None:
    rows = [row_of(9, 7, length=16), row_of(12, length=12), row_of(5, 5, 5, length=16)]
    whole, parts = PositionBands(EDGES), [PositionBands(EDGES) for _ in rows]
    for seed, (row, part) in enumerate(zip(rows, parts, strict=True)):
        whole.add(row, losses_of(row, seed))
        part.add(row, losses_of(row, seed))
    merged = PositionBands(EDGES)
    for part in parts:
        merged.merge(PositionBands.from_json(json.loads(json.dumps(part.to_json()))))
    for ours, expected in zip(merged.bands(), whole.bands(), strict=True):
        assert (ours.tokens, ours.documents) == (expected.tokens, expected.documents)
        assert ours.loss == pytest.approx(expected.loss, rel=1e-14)


def test_sums_do_not_drift_as_float32_would() -> None:
    bands = PositionBands((0, 4096))
    row = row_of(4096, length=4096)
    losses = np.where(row.targets() >= 0, np.float32(0.1), np.float32(NAN)).astype(
        np.float32
    )
    for _ in range(200):
        bands.add(row, losses)
    assert bands.band(0, 4096).loss == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (np.zeros(4), "shape"),
        (np.array([1, np.inf, NAN, NAN, NAN]), "infinite"),
        (np.array([1, 1, NAN, NAN, 1]), "fill"),
    ],
)
def test_losses_that_cannot_be_are_refused(losses: np.ndarray, message: str) -> None:
    bands = PositionBands(EDGES)
    with pytest.raises(DataError, match=message):
        bands.add(row_of(3, length=5), losses)
    assert bands.tokens == 0


def test_other_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="must start at 0 and rise"):
        PositionBands((1, 4))
    with pytest.raises(DataError, match="must start at 0 and rise"):
        PositionBands((0, 4, 4))
    with pytest.raises(DataError, match="one number >= 0 for each"):
        PositionBands(EDGES).add(
            row_of(3, length=3), np.array([1, 1, NAN]), position_offset=[0, 1]
        )
    with pytest.raises(DataError, match="cannot merge"):
        PositionBands(EDGES).merge(PositionBands((0, 5)))
    with pytest.raises(DataError, match="edges are"):
        PositionBands(EDGES).band(0, 5)
    with pytest.raises(DataError, match="not losses by position"):
        PositionBands.from_json({"edges": [0, 4]})


# --- comparison -----------------------------------------------------------------------


def evaluated(
    shift: float = 0.0, noise: int = 0, documents: int = 12, far: float = 0.0
) -> PositionBands:
    """Losses of `documents` documents of differing difficulty;

    `shift` and `far` are added (in [4, 8)).
    """
    bands = PositionBands(EDGES)
    for number in range(documents):
        generator = np.random.default_rng(number)
        values = generator.gamma(8, 0.2, 9) + generator.uniform(1, 4) + shift
        values += (
            np.random.default_rng(1000 + noise * 100 + number).normal(0, 0.02, 9)
            if noise
            else 0
        )
        values[4:8] += far
        values[8] = NAN
        row = row_of(9, length=9)
        bands.add(PackedRow(**{**_fields(row), "doc_ids": np.array([number])}), values)
    return bands


def _fields(row: PackedRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def test_a_constant_shift_has_no_error() -> None:
    paired = paired_difference(evaluated(), evaluated(0.25), 0, 4)
    assert paired.difference == pytest.approx(0.25, abs=1e-12)
    assert paired.standard_error == pytest.approx(0.0, abs=1e-9)
    assert (paired.documents, paired.unpaired) == (12, 0)


def test_the_standard_error_agrees_with_the_jackknife() -> None:
    generator = np.random.default_rng(7)
    first, second = PositionBands((0, 400)), PositionBands((0, 400))
    table = []
    for number in range(40):
        row = row_of(int(generator.integers(20, 400)), length=400)
        row = PackedRow(**{**_fields(row), "doc_ids": np.array([number])})
        level = generator.uniform(1, 5)
        a = losses_of(row, number, level)
        b = a + np.where(
            np.isnan(a), NAN, generator.normal(generator.normal(-0.1, 0.2), 0.3, 400)
        )
        first.add(row, a)
        second.add(row, b)
        table.append((np.nansum(a), np.nansum(b), np.sum(~np.isnan(a))))
    sums = np.array(table)
    left_out = np.array(
        [
            (t := np.delete(sums, i, axis=0).sum(axis=0))[1] / t[2] - t[0] / t[2]
            for i in range(40)
        ]
    )
    jackknife = math.sqrt(39 / 40 * float(np.sum((left_out - left_out.mean()) ** 2)))
    paired = paired_difference(first, second, 0, 400)
    assert paired.difference == pytest.approx(
        (sums[:, 1].sum() - sums[:, 0].sum()) / sums[:, 2].sum()
    )
    assert paired.standard_error == pytest.approx(jackknife, rel=0.1)


def test_only_common_documents_are_compared() -> None:
    paired = paired_difference(
        evaluated(documents=12), evaluated(0.25, documents=9), 0, 4
    )
    assert (paired.documents, paired.unpaired) == (9, 3)
    assert paired.difference == pytest.approx(0.25, abs=1e-12)


def test_one_document_gives_no_error_and_none_no_difference() -> None:
    assert math.isnan(
        paired_difference(
            evaluated(documents=1), evaluated(documents=1), 0, 4
        ).standard_error
    )
    assert paired_difference(evaluated(), PositionBands(EDGES), 0, 4).documents == 0


# --- verdicts and report --------------------------------------------------------------


def test_a_good_extension_passes() -> None:
    near, far = judge(
        {"base": evaluated(noise=1), "last": evaluated(noise=2, far=-0.5)},
        base="base",
        final="last",
    )
    assert near.holds is True and far.holds is True
    assert "12 documents" in far.detail and "standard error" in far.detail


def test_no_gain_far_out_fails() -> None:
    _, far = judge(
        {"base": evaluated(noise=1), "last": evaluated(noise=2)},
        base="base",
        final="last",
    )
    assert far.holds is False


@pytest.mark.parametrize(("shift", "holds"), [(0.01, True), (0.5, False), (-0.5, True)])
def test_the_base_context_may_lose_two_per_cent(shift: float, holds: bool) -> None:
    near, _ = judge(
        {"base": evaluated(), "last": evaluated(shift)}, base="base", final="last"
    )
    assert near.holds is holds


def test_bands_are_near_or_far_by_the_base_s_own_context() -> None:
    """Where a base held 2 of 3 bands, more is asked of the last one alone; and nothing
    where the last stage was not trained.
    """
    results = {"base": evaluated(noise=1), "last": evaluated(noise=2)}
    edges = results["base"].edges
    verdicts = judge(results, base="base", final="last", native=edges[-1])
    assert [v.claim.split()[1] for v in verdicts] == ["loses"] * (len(edges) - 1)
    short = judge(results, base="base", final="last", native=edges[1], reach=edges[1])
    assert len(short) == 1


def test_a_base_that_was_given_too_much_is_not_what_stages_are_held_against() -> None:
    """Anything beats it: every stage is compared with the base in blocks of its own."""
    near, far = EDGES[1], EDGES[-1]
    measured = [
        ("base", near, evaluated(noise=1)),
        ("base", far, evaluated(far=2.0)),
        ("middle", far, evaluated(noise=3, far=-0.5)),
        ("last", far, evaluated(noise=2)),
    ]
    lines = [
        Measured(f"{model} {n}", model, n, {"positions": bands.to_json()})
        for model, n, bands in measured
    ]
    said = claims(lines, Chain("base", near, {"middle": far, "last": far}))
    assert {(v.model, v.evaluator) for v in said} == {
        ("middle", "positions"),
        ("last", "positions"),
    }
    better = {
        v.model: v.holds for v in said if "clearly better than base at" in v.claim
    }
    assert better == {"middle": True, "last": False}


def test_too_few_documents_decide_nothing() -> None:
    verdicts = judge(
        {"base": evaluated(documents=1), "last": evaluated(documents=1)},
        base="base",
        final="last",
    )
    assert [verdict.holds for verdict in verdicts] == [None, None]


def test_names_and_edges_are_checked() -> None:
    with pytest.raises(DataError, match="no result named missing; there are: base"):
        judge({"base": evaluated()}, base="base", final="missing")
    with pytest.raises(DataError, match="different band edges"):
        judge(
            {"base": evaluated(), "last": PositionBands((0, 5))},
            base="base",
            final="last",
        )


def test_the_report_is_whole(tmp_path: Path) -> None:
    results = {
        "base | a": evaluated(noise=1),
        "last": evaluated(noise=2, far=-0.5),
        "empty": PositionBands(EDGES),
    }
    verdicts = judge(results, base="base | a", final="last")
    report = write_report(
        results, tmp_path / "out", verdicts, notes=["measured by hand"]
    )
    assert report.verdicts == verdicts
    text = report.markdown.read_text()
    assert (
        "base \\| a" in text
        and "measured by hand" in text
        and "loss_by_position.png" in text
    )
    assert text.count("yes: ") == 2
    data = json.loads(report.json.read_text())
    again = PositionBands.from_json(data["results"]["last"]["sums"])
    assert again.bands() == results["last"].bands()
    assert data["results"]["empty"]["bands"][0]["loss"] is None
    image = report.plot.read_bytes()
    assert image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) > 10_000
    assert {path.name for path in report.markdown.parent.iterdir()} == {
        "report.md",
        "report.json",
        report.plot.name,
    }


def test_the_table_has_a_line_a_model_and_a_column_a_band() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(loss_table({"base": evaluated(), "last": evaluated(0.1)}))
    shown = console.export_text()
    near = evaluated().band(0, 4).loss
    assert (
        f"{near:.4f}" in shown and "0-3" in shown and "4-7" in shown and "last" in shown
    )
