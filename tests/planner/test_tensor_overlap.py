"""Messages of tensor-parallel layers in chunks as the planner times them, against sums by hand."""

from __future__ import annotations

from typing import Any

import pytest

from alia_ctx.planner import plan_stage
from alia_ctx.planner.stage import StagePlan
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.planner.test_planner import LONGEST

T, H, LAYERS = 32_768, 8192, 8
ALIA = ModelSpec(LAYERS, H, 24_576, 64, 8, 128, 8192)
NODE = ClusterSpec(ranks_per_node=4, memory_gib=80, node_gb_per_s=400)


def planned(
    chunks: int,
    layout: Layout = Layout(tp=4),  # noqa: B008
    recompute: str = "none",
    cluster: ClusterSpec = NODE,
    **changes: Any,
) -> StagePlan:
    return plan_stage(
        *(ALIA, LONGEST, T, layout, 4, 10**9, T, recompute),  # type: ignore[arg-type]
        cluster=cluster,
        tp_overlap_chunks=chunks,
        **changes,
    )


@pytest.mark.parametrize(
    ("recompute", "whole", "in_chunks"),
    [("none", 4, 4 + 2), ("selective", 4, 4 + 2 + 2), ("full", 4, 4 + 2 + 4)],
)
@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_one_chunk_of_what_is_overlapped_is_waited_for(
    chunks: int, recompute: str, whole: int, in_chunks: int
) -> None:
    """A layer gathers before Q, K, V and before gate with up, and scatters after the
    projection and after down; its backward gathers two gradients, and beside that gathers
    inputs again and scatters their gradients, twice each.
    """
    timing = planned(chunks, recompute=recompute).timing
    each = LAYERS * 3 / 4 * T * H * 2 / 400e9
    expected = (whole + in_chunks / chunks) * each
    assert timing.tensor_parallel == pytest.approx(expected)
    once = planned(1, recompute=recompute).timing
    assert timing.compute == once.compute
    assert timing.total - once.total == pytest.approx(
        timing.tensor_parallel - once.tensor_parallel
    )


def test_what_the_products_are_too_short_for_is_waited_for() -> None:
    """Over a network of 1 GB/s messages take longer than all products: what these cannot
    hide stays, however many the chunks.
    """
    slow = ClusterSpec(ranks_per_node=4, memory_gib=80, node_gb_per_s=1)
    each = LAYERS * 3 / 4 * T * H * 2 / 1e9
    rate = 4 * slow.peak_flops("bf16") * slow.efficiency
    tables = ALIA.vocab_size * H
    products = 2 * (ALIA.linear_flops_per_token() / 6 - tables) * T / rate
    head = 6 * tables * T / rate
    expected = (4 + 4 + 2) * each - (products + head) - 2 * products
    for chunks in (64, 1024):
        timing = planned(chunks, cluster=slow).timing
        assert timing.tensor_parallel == pytest.approx(expected)
    assert planned(1, cluster=slow).timing.tensor_parallel == pytest.approx(10 * each)


def test_nothing_else_changes() -> None:
    for layout in (Layout(tp=4), Layout(cp=4)):
        once, in_chunks = planned(1, layout), planned(4, layout)
        assert [r.items for r in once.memory] == [r.items for r in in_chunks.memory]
    assert planned(4, Layout(cp=4)).timing == planned(1, Layout(cp=4)).timing
