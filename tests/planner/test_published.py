"""The planner's speed against what others have published of theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.machines import MACHINES
from tests.published_throughput import (
    H100,
    PUBLISHED,
    TORCHTITAN,
    Published,
    mean_square,
    palm_tokens_per_second,
    rows_of,
)

WITHIN = 0.25
QUOTED = rows_of("quoted")


def is_best(rows: list[Published], cluster: ClusterSpec) -> bool:
    """Whether no neighbour of the two constants fits better."""
    here = mean_square(rows, cluster)
    for name in ("efficiency", "attention_efficiency"):
        for step in (-0.01, 0.01):
            moved = replace(cluster, **{name: getattr(cluster, name) + step})
            if mean_square(rows, moved) < here:
                return False
    return True


def test_the_defaults_were_fitted_to_rows_that_are_not_quoted() -> None:
    assert is_best([*rows_of("ours"), *rows_of("NVIDIA")], H100)
    assert (H100.efficiency, H100.attention_efficiency) == (
        ClusterSpec().efficiency,
        ClusterSpec().attention_efficiency,
    )


def test_quoted_rows_within_a_quarter() -> None:
    """The three of Llama 3 405B, and TRL's million tokens; torchtitan's are not."""
    within = {row.name for row in QUOTED if abs(row.error()) <= WITHIN}
    assert within == {
        "Llama 3 405B, 8,192, 8,192 GPUs",
        "Llama 3 405B, 8,192, 16,384 GPUs",
        "Llama 3 405B, 131,072, 16,384 GPUs",
        "Qwen3-8B, 1,048,576, 8 GPUs",
    }


def test_torchtitans_rows_with_constants_of_its_other_rows() -> None:
    others = rows_of("torchtitan")
    assert is_best(others, TORCHTITAN)
    quoted = [row for row in QUOTED if "torchtitan" in row.source]
    assert len(quoted) == 3 and not set(quoted) & set(others)
    assert all(abs(row.error(TORCHTITAN)) <= WITHIN for row in quoted)


def test_one_h200_to_a_tenth() -> None:
    """What we measured with FlashAttention 4, by the constants of that machine, which are of
    more rows than these.
    """
    *fast, other_kernel = rows_of("ours")
    assert all(-0.1 < row.error(MACHINES["h200"]) < 0 for row in fast)
    assert other_kernel.error(MACHINES["h200"]) > 0.15


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.source} {row.name}")
def test_each_row_is_a_layout_that_can_be(row: Published) -> None:
    ranks = row.layout.model_ranks
    assert row.gpus % ranks == 0
    assert row.rows % (row.gpus // ranks) == 0, "equal rows on all ranks"


def test_published_flops_become_tokens() -> None:
    """38% of 989 TFLOPs and 380 TFLOPs are one figure of the table."""
    herd = next(row for row in QUOTED if "131,072, 16,384" in row.name)
    assert herd.speed == pytest.approx(
        palm_tokens_per_second(herd.model, herd.context, 0.384 * 989), rel=0.01
    )
    assert herd.model.parameters() == pytest.approx(405.85e9, rel=1e-4)
