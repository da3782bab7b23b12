"""The planner's figures against the real model of one rank, built without its memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alia_ctx.errors import AliaError
from alia_ctx.planner import StagePlan, plan_stage
from alia_ctx.spec.execution import Precision, Recompute
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.workflow.dry_running import counted_without_memory, expected_counts
from tests.planner.test_planner import LONG, LONGEST

# Eight layers of ALIA-40b and four of others: what a layer holds does not depend on how
# many there are.
ALIA = ModelSpec(8, 8192, 24576, 64, 8, 128, 256_000)
QWEN3 = ModelSpec(
    4, 4096, 12288, 32, 8, 128, 151_936, "qwen3", tie_word_embeddings=True, qk_norm=True
)
QWEN2 = replace(QWEN3, architecture="qwen2", qk_norm=False, attention_bias=True)
WITHIN = 0.02


def plan(
    model: ModelSpec,
    layout: Layout,
    world: int,
    recompute: Recompute,
    context: int = 32_768,
    precision: Precision = "bf16",
) -> StagePlan:
    rope = LONG if context == 32_768 else LONGEST
    sizes = (world, 10**9, world * context)
    return plan_stage(model, rope, context, layout, *sizes, recompute, precision)


COMBINATIONS = {
    "alone": plan(ALIA, Layout(), 1, "none"),
    "alone, fp32": plan(ALIA, Layout(), 1, "none", precision="fp32"),
    "alone, selective": plan(ALIA, Layout(), 2, "selective"),
    "alone, full": plan(ALIA, Layout(), 2, "full"),
    "tp2": plan(ALIA, Layout(2), 4, "none"),
    "cp2": plan(ALIA, Layout(1, 2), 4, "none"),
    "pp4": plan(ALIA, Layout(1, 1, 4), 4, "selective"),
    "published 32k": plan(ALIA, Layout(4, 8, 2), 64, "selective"),
    "160k": plan(ALIA, Layout(4, 16, 2), 128, "selective", 163_840),
    "160k, full": plan(ALIA, Layout(4, 4, 2), 32, "full", 163_840),
    "qwen3, tied": plan(QWEN3, Layout(2, 2), 8, "none"),
    "qwen2, biases": plan(QWEN2, Layout(2, 1, 2), 4, "selective"),
}


@pytest.mark.long
def test_twelve_combinations_within_two_percent() -> None:
    """One process builds them all: importing Megatron takes most of the time."""
    counted = counted_without_memory(list(COMBINATIONS.values()))
    assert len(counted) == 12
    off = {
        f"{name}: {figure}": f"{counts[figure]:,} counted, {expected:,} expected"
        for (name, made), counts in zip(COMBINATIONS.items(), counted, strict=True)
        for figure, expected in expected_counts(made).items()
        if abs(counts[figure] / expected - 1) > WITHIN
    }
    assert not off


def test_what_fails_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alia_ctx.workflow.dry_running.sys.executable", "false")
    with pytest.raises(AliaError, match="the dry run failed: it said nothing"):
        counted_without_memory([COMBINATIONS["alone"]])
