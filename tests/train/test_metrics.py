"""The arithmetic of metrics, against loops over tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from alia_ctx.data.packing import PackedRow
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.engine import UpdateResult
from alia_ctx.train.metrics import (
    GroupedLoss,
    SpikeDetector,
    StageMetrics,
    documents_of,
)

MODEL = ModelSpec(2, 32, 64, 4, 2, 8, 200)


def test_losses_by_position_and_source_are_those_of_a_loop() -> None:
    lengths, sources = [5, 11, 9], np.array([1, 0, 1], dtype=np.int32)
    offsets = np.cumsum([0, *lengths])
    losses = np.random.default_rng(0).gamma(4, 1, 28).astype(np.float32)
    losses[[4, 15, 24, 25, 26, 27]] = np.nan  # ends of documents, and the fill
    grouped = GroupedLoss((0, 4, 8), ["a", "b"])
    grouped.add(offsets, sources, losses)
    bands: dict[str, list[float]] = {"0-3": [], "4-7": []}
    names: dict[str, list[float]] = {"a": [], "b": []}
    for piece, length in enumerate(lengths):
        for position in range(length - 1):
            loss = float(losses[offsets[piece] + position])
            bands["0-3" if position < 4 else "4-7"].append(loss)
            names["ab"[sources[piece]]].append(loss)
    means = grouped.means(grouped.values)
    for axis, groups in (("position", bands), ("source", names)):
        expected = {name: np.mean(values) for name, values in groups.items()}
        assert means[f"loss_by_{axis}"] == pytest.approx(expected, rel=1e-12)


def test_the_work_of_a_row_is_linear_and_attention_flops() -> None:
    metrics = StageMetrics(MODEL, 64, (0, 64), ["text"], 1e12)
    whole, cut = 64 * 65 // 2, 2 * (32 * 33 // 2)
    linear = 64 * MODEL.linear_flops_per_token()
    assert metrics.flops(np.array([whole, cut])) == [
        linear + MODEL.attention_flops([64]),
        linear + MODEL.attention_flops([32, 32]),
    ]


def test_fill_is_work_and_of_no_use() -> None:
    metrics = StageMetrics(MODEL, 64, (0, 64), ["text"], 1e12)
    documents = [np.arange(20), np.arange(13)]
    row = PackedRow.from_documents(documents, length=64)
    assert metrics.useful_flops([row, row]) == pytest.approx(
        2 * (33 * MODEL.linear_flops_per_token() + MODEL.attention_flops([20, 13]))
    )
    full = PackedRow.from_documents([np.arange(64)], length=64)
    pairs = np.array([64 * 65 // 2])
    assert metrics.useful_flops([full]) == pytest.approx(sum(metrics.flops(pairs)))


def test_speed_is_per_second_and_per_rank() -> None:
    speed = StageMetrics(MODEL, 64, (0, 64), ["text"], 1e12).speed(2.0, 100, 8e12, 4)
    assert speed["tokens_per_second"] == 50
    assert speed["tokens_per_second_per_rank"] == 12.5
    assert speed["mfu"] == 1.0
    assert speed["mfu_6n"] == 6 * MODEL.parameters() * 100 / 2 / 4e12


@pytest.mark.parametrize(
    ("loss", "spike"), [(2.1, False), (4.0, True), (math.nan, False)]
)
def test_a_spike_is_far_above_what_came_before(loss: float, spike: bool) -> None:
    detector = SpikeDetector()
    noise = np.random.default_rng(1).normal(2.0, 0.05, 40)
    assert not any(detector.is_spike(before) for before in noise)
    assert detector.is_spike(loss) is spike


def test_a_resumed_stage_remembers_the_losses_before() -> None:
    engine = SimpleNamespace(
        memory_bytes=lambda: 0, sum_over_ranks=lambda values: values
    )
    result = UpdateResult(9.0, 63, 1.0, True, (), 0.0, 0.0, 0.0)
    for past, spike in (([], False), ([2.0, math.nan] * 20, True)):
        metrics = StageMetrics(MODEL, 64, (0, 64), ["text"], 1e12)
        metrics.remember(past)
        assert metrics.results(engine, result)["spike"] is spike  # type: ignore[arg-type]


def test_documents_of_a_row_are_named_eight_at_most() -> None:
    rows = [
        PackedRow.from_documents([np.arange(4)] * count, length=64, index=index)
        for index, count in ((7, 2), (8, 10))
    ]
    assert documents_of(rows, ["web"]) == [
        "row 7: web/0, web/1",
        "row 8: " + ", ".join(f"web/{n}" for n in range(8)) + " and 2 more",
    ]
