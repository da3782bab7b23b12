"""What far context brings, LongPPL's key tokens, leaks: against brute force on small rows."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import DataError
from alia_ctx.evaluation import PositionBands
from alia_ctx.evaluation.blocks import WithoutBlockEnds, far_context_gain
from alia_ctx.evaluation.held_out import StoredText, held_out_rows, longest_measurable
from alia_ctx.evaluation.leak import LEAST_ROW, LeakCounts, probes
from alia_ctx.evaluation.long_ppl import KeyTokens, TokenLosses, Windows
from alia_ctx.workflow.measuring import Measurement

LENGTH, BLOCK = 24, 8
EDGES = (0, 8, 24)


class Text:
    """Documents of random tokens in memory."""

    where, fingerprint, sources = "text", "0", ("books", "code")

    def __init__(self, *lengths: int) -> None:
        self.lengths = np.array(lengths)

    def sources_of(self, documents: list[int]) -> list[int]:
        return [d % 2 for d in documents]

    def document(self, number: int, start: int, stop: int) -> np.ndarray:
        random = np.random.default_rng(number)
        return random.integers(0, 50, int(self.lengths[number]))[start:stop]


def model_losses(document: np.ndarray, seen_from: int, at: int) -> float:
    """A made-up model's loss of token at + 1, which depends on how much it sees."""
    seen = document[seen_from : at + 1]
    return float(seen.sum() % 7) + 5 / (1 + len(seen)) + 0.01 * float(document[at + 1])


def run_model(rows: Any, evaluator: Any, skip_row: int | None = None) -> Any:
    for number in range(len(rows)):
        held_out = rows[number]
        losses = np.full(held_out.row.length, np.nan)
        tokens = held_out.row.tokens()
        offsets = held_out.row.doc_offsets
        for start, stop in pairwise(offsets.tolist()):
            piece = tokens[start:stop]
            for at in range(len(piece) - 1):
                losses[start + at] = model_losses(piece, 0, at)
        if number != skip_row:
            evaluator.add(
                held_out.pieces, losses, position_offset=held_out.position_offsets
            )
    return evaluator


@pytest.mark.parametrize("row_length", [24, 57])
def test_gain_of_far_context_by_brute_force(row_length: int) -> None:
    text = Text(30, 10, 24, 40)
    options: dict[str, Any] = {
        "length": LENGTH,
        "documents": 9,
        "row_length": row_length,
    }
    whole_rows = held_out_rows(text, context=LENGTH, **options)
    block_rows = held_out_rows(text, context=BLOCK, **options)
    whole = run_model(whole_rows, WithoutBlockEnds(EDGES, blocks=[BLOCK]))
    blocks = run_model(block_rows, PositionBands(EDGES))
    found = far_context_gain(whole, blocks, BLOCK, LENGTH)["bands"]
    for band, (first, last) in zip(found, ((0, 8), (8, 24)), strict=True):
        gains = []
        for number in (0, 2, 3):
            document = text.document(number, 0, LENGTH)
            at = [p for p in range(first, last) if p % BLOCK != BLOCK - 1]
            gains.append(
                np.mean(
                    [
                        model_losses(document, p - p % BLOCK, p)
                        - model_losses(document, 0, p)
                        for p in at
                    ]
                )
            )
        assert band["documents"] == 3
        assert band["gain"] == pytest.approx(np.mean(gains))
        error = np.std(gains, ddof=1) / math.sqrt(3)
        assert band["standard_error"] == pytest.approx(error)


def test_key_tokens_by_brute_force() -> None:
    text, windows = Text(30, 40, 26), Windows(8, 3)
    rows = held_out_rows(text, context=LENGTH, length=LENGTH, documents=9)
    whole = run_model(rows, TokenLosses(LENGTH))
    short_rows = windows.rows(text, [0, 1, 2], LENGTH, 25)
    short = run_model(short_rows, TokenLosses(LENGTH, windows.short))
    short = TokenLosses.from_json(short.to_json())  # as it travels
    keys = KeyTokens.find(whole, short, "itself", LENGTH, 8)
    expected, everything = [], []
    for number in range(3):
        document = text.document(number, 0, LENGTH)
        full = [model_losses(document, 0, p) for p in range(LENGTH - 1)]
        everything += full
        for start in range(0, LENGTH - 8, 3):
            for target in range(start + 8, min(start + 11, LENGTH)):
                seen = model_losses(document, start, target - 1)
                if seen - full[target - 1] > 2 and full[target - 1] < 2:
                    expected.append(full[target - 1])
    content = keys.long_ppl(whole)
    assert content["key_tokens"] == len(expected) > 3
    assert content["long_ppl"] == pytest.approx(math.exp(np.mean(expected)))
    assert content["ppl"] == pytest.approx(math.exp(np.mean(everything)))


@pytest.mark.parametrize("context", [9, 10, 11, 12, 24])
def test_windows_fit_into_rows_that_are_little_longer_than_the_base(
    context: int,
) -> None:
    text, windows = Text(30, 40), Windows.of(BLOCK, context)
    rows = windows.rows(text, [0, 1], LENGTH, context)
    measured = run_model(rows, TokenLosses(LENGTH, windows.short))
    for losses in measured.losses.values():
        there = np.flatnonzero(~np.isnan(losses))
        assert there.tolist() == list(range(BLOCK - 1, LENGTH - 1))


def test_sources_have_bands_of_their_own() -> None:
    text = Text(24, 24, 24)
    rows = held_out_rows(text, context=24, length=24, documents=9)
    bands = run_model(rows, PositionBands(EDGES, sources=text.sources))
    by_source = PositionBands.from_json(bands.to_json()).by_source()
    for source, numbers in {"books": (0, 2), "code": (1,)}.items():
        losses = [
            model_losses(text.document(n, 0, 24), 0, p)
            for n in numbers
            for p in range(8)
        ]
        near = by_source[source][0]
        assert near.loss == pytest.approx(np.mean(losses))
        assert near.documents == len(numbers)
        assert (near.standard_error is None) == (len(numbers) == 1)


def test_standard_errors_take_documents_as_samples() -> None:
    """Documents of equal length: the error of a mean of means."""
    text = Text(*[24] * 6)
    rows = held_out_rows(text, context=24, length=24, documents=9)
    band = run_model(rows, PositionBands(EDGES)).band(0, 8)
    means = [
        np.mean([model_losses(text.document(n, 0, 24), 0, p) for p in range(8)])
        for n in range(6)
    ]
    assert band.standard_error == pytest.approx(np.std(means, ddof=1) / math.sqrt(6))


def test_a_probe_changes_one_token_of_one_document() -> None:
    seen = set()
    for probe in probes(100, 64):
        before, after = probe.row.tokens(), probe.changed_row.tokens()
        assert np.flatnonzero(before != after).tolist() == [probe.changed]
        start, stop = probe.row.doc_offsets[probe.piece : probe.piece + 2]
        assert start <= probe.changed < stop
        seen.add(probe.piece)
    assert len(seen) == 3


def test_a_probe_needs_a_row_of_several_documents() -> None:
    """The shortest one has a document in which a change can move a prediction."""
    on = Measurement(None, 0, 1, (0, 8), native=8, vocab_size=50)
    for context in range(LEAST_ROW, LEAST_ROW + 30):
        assert on.problem("leak", context) is None
        probed = list(probes(50, context))
        sizes = [np.diff(p.row.doc_offsets)[p.piece] for p in probed]
        assert any(size > 1 for size in sizes)
        # Something was changed in front of a prediction of its own document.
        assert any(p.changed < p.row.doc_offsets[p.piece + 1] - 1 for p in probed)
    for context in range(1, LEAST_ROW):
        assert "needs rows of" in (on.problem("leak", context) or "")


def test_leaks_are_counted_bit_for_bit() -> None:
    probe = next(iter(probes(100, 64)))
    losses = np.where(probe.row.targets() >= 0, np.float32(2.0), np.nan)
    moved = losses.copy()
    start, stop = probe.row.doc_offsets[probe.piece : probe.piece + 2]
    moved[start : stop - 1] += 1  # its own document may move
    counts = LeakCounts()
    counts.add(probe, losses, moved)
    assert (counts.moved, counts.own_moved) == (0, stop - start - 1)
    elsewhere = int(probe.row.doc_offsets[-1]) - 2
    moved[elsewhere] = np.nextafter(np.float32(2.0), np.float32(3.0))
    counts.add(probe, losses, moved)
    moved[elsewhere] = np.nan
    counts.merge(LeakCounts.from_json(counts.to_json()))
    counts.add(probe, losses, moved)
    assert counts.moved == 3 and counts.largest_difference == np.inf


def test_documents_are_measured_at_the_longest_length_they_have() -> None:
    assert longest_measurable(Text(10, 100), [8, 64, 128]) == 64
    assert longest_measurable(Text(4), [8]) is None
    with pytest.raises(
        DataError, match=r"no document has 8 tokens \(the longest has 4\)"
    ):
        held_out_rows(Text(4), context=8, length=8, documents=1)


def test_rows_of_a_store_hold_its_tokens(tmp_path: Any) -> None:
    from alia_ctx.data.tokens import write_store

    store = write_store(tmp_path / "s", [np.arange(20), np.arange(7)], 50)
    rows = held_out_rows(StoredText(store), context=8, length=20, documents=2)
    assert [rows[n].row.tokens()[:4].tolist() for n in range(3)] == [
        [0, 1, 2, 3],
        [8, 9, 10, 11],
        [16, 17, 18, 19],
    ]
    assert isinstance(rows[0].row, PackedRow)


class Replicas:
    """Two data-parallel ranks of two context-parallel ones; `leaking` is a rank of the
    first kind whose documents see each other.
    """

    def __init__(self, leaking: int | None = None) -> None:
        self.leaking = leaking
        self.data_parallel_rank = 0

    def row_losses(self, rows: Any) -> list[Any]:
        (row,) = rows
        tokens = row.tokens().astype(np.float64)
        losses = np.array([tokens[: at + 1].sum() for at in range(len(tokens))])
        if self.data_parallel_rank != self.leaking:
            for start, stop in pairwise(row.doc_offsets.tolist()):
                losses[start:stop] = np.cumsum(tokens[start:stop])
        half = len(tokens) // 2
        losses[half:] = np.where(self.data_parallel_rank < 0, losses[half:], np.nan)
        return [SimpleNamespace(as_row=lambda: losses)]

    def gather_objects(self, own: tuple[int, Any]) -> list[Any]:
        """As if the other replica had found the same, or what it leaks."""
        if self.leaking is None:
            return [own, (1, own[1])]
        return [(0, {**own[1], "moved": 0}), (1, {**own[1], "moved": 7})]


@pytest.mark.parametrize(("leaking", "moved"), [(None, 0), (1, 7)])
def test_positions_are_counted_once_however_many_replicas_read_them(
    leaking: int | None, moved: int
) -> None:
    on = Measurement(None, 0, 1, (0, 64), 64, 50)
    engine: Any = Replicas(leaking)
    once = LeakCounts()
    for probe in probes(50, 64):
        found = [
            engine.row_losses([r])[0].as_row() for r in (probe.row, probe.changed_row)
        ]
        once.add(probe, *found)
    content = on.leaks(engine, 64, {"dp": 2})
    assert content["positions"] == once.positions > 0
    assert content["moved"] == moved
