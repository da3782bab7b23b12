"""Host memory of a node whose ranks differ, against the engine's own count by rank and
Megatron's order of ranks.
"""

from __future__ import annotations

import pytest
from megatron.core.parallel_state import RankGenerator

from alia_ctx.mcore.offloading import most_away
from alia_ctx.planner import plan_stage
from alia_ctx.planner.stage import StagePlan
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.planner.test_planner import LONGEST

T, H, LAYERS, GIB = 163_840, 8192, 8, 2**30
ALIA = ModelSpec(LAYERS, H, 24_576, 64, 8, 128, 8192)


def planned(
    layout: Layout, dp: int, node: int, rows: int = 1, recompute: str = "full"
) -> StagePlan:
    world, update = layout.model_ranks * dp, rows * dp * T
    return plan_stage(
        *(ALIA, LONGEST, T, layout, world, update, update),
        recompute=recompute,  # type: ignore[arg-type]
        cluster=ClusterSpec(ranks_per_node=node, host_overhead_gib=0),
        offload=True,
    )


def stages_of(layout: Layout, dp: int) -> dict[int, int]:
    """Global rank -> pipeline rank, by upstream."""
    order = "tp-cp-ep-dp-pp"  # of `initialize_model_parallel`
    ranks = RankGenerator(layout.tp, 1, dp, layout.pp, layout.cp, order)
    return {
        rank: stage
        for group in ranks.get_ranks("pp")
        for stage, rank in enumerate(group)
    }


def fullest(by_rank: dict[int, float], node: int) -> float:
    nodes: dict[int, float] = {}
    for rank, gib in by_rank.items():
        nodes[rank // node] = nodes.get(rank // node, 0.0) + gib
    return max(nodes.values())


# (layout, data-parallel ranks, GPUs of a node): a pipeline inside a node of 4 or 8, two nodes
# a stage, stages that end in the middle of a node, nodes that are not full, one GPU each.
CASES = [
    (Layout(pp=4), 1, 4),
    (Layout(pp=2), 1, 4),
    (Layout(pp=2), 1, 2),
    (Layout(tp=2, pp=2), 1, 4),
    (Layout(pp=2), 2, 4),
    (Layout(cp=2, pp=4), 1, 8),
    (Layout(pp=8), 1, 8),
    (Layout(tp=4, pp=2), 2, 4),
    (Layout(tp=8, pp=2), 2, 8),
    (Layout(tp=2, cp=2, pp=4), 3, 8),
    (Layout(pp=4), 3, 4),
    (Layout(pp=4), 1, 3),
    (Layout(pp=4), 1, 1),
    (Layout(tp=4, cp=2), 2, 8),
]


@pytest.mark.parametrize(("layout", "dp", "node"), CASES)
@pytest.mark.parametrize("rows", [1, 6])
def test_inputs_on_the_host_are_what_a_nodes_ranks_lock(
    layout: Layout, dp: int, node: int, rows: int
) -> None:
    size = T // layout.cp // layout.tp * H * 2
    locked = {}
    for rank, stage in stages_of(layout, dp).items():
        layers = LAYERS // layout.pp - (stage > 0)  # as `offloading` has them
        locked[rank] = most_away(layers, layout.pp - stage) * size / GIB
    items = planned(layout, dp, node, rows).host_items
    expected = fullest(locked, node)
    assert items.get("offloaded activations", 0.0) == pytest.approx(expected)


def test_the_figures_of_a_pipeline_inside_a_node() -> None:
    """It said 80 and 40 GiB."""
    for pp, gib in ((4, 20 + 7.5 + 5 + 0), (2, 20 + 5)):
        items = planned(Layout(pp=pp), 1, 4).host_items
        assert items["offloaded activations"] == pytest.approx(gib)


@pytest.mark.parametrize(("layout", "dp", "node"), CASES)
def test_a_copy_for_a_save_is_of_each_ranks_own_stage(
    layout: Layout, dp: int, node: int
) -> None:
    """bf16 weights, main weights and moments: 14 bytes of what a rank owns."""
    copies = {}
    tp, share = layout.tp, dp * layout.cp
    for rank, stage in stages_of(layout, dp).items():
        matrices = (ALIA.layer_parameters() - 2 * H) // tp + 2 * H
        count = LAYERS // layout.pp * matrices
        count += (stage == 0) * 8192 * H // tp
        count += (stage == layout.pp - 1) * (8192 * H // tp + H)
        copies[rank] = 14 * count / share / GIB
    away = planned(layout, dp, node, recompute="full")
    items = {**away.host_items}
    # Of the node that needs most in all: a bound from both sides.
    assert items["copy for a save"] <= fullest(copies, node) + 1e-6
    assert items["copy for a save"] >= min(copies.values()) - 1e-6
    alone = plan_stage(
        *(ALIA, LONGEST, T, layout, layout.model_ranks * dp, T, T),
        cluster=ClusterSpec(ranks_per_node=node, host_overhead_gib=0),
    )
    assert alone.host_gib == pytest.approx(fullest(copies, node), rel=1e-6)


def test_rows_in_flight_of_others_than_the_first_pipeline_rank() -> None:
    """Without full recomputation: four stages of two layers, with 4, 3, 2 and 1 rows in flight."""
    whole = planned(Layout(pp=4), 1, 4, rows=6, recompute="none")
    one = planned(Layout(pp=4), 1, 1, rows=6, recompute="none")
    first = one.host_items["offloaded activations"]
    assert whole.host_items["offloaded activations"] == pytest.approx(
        first * (4 + 3 + 2 + 1) / 4
    )
