"""Offloaded inputs of recomputed layers as the planner has them, against sums by hand; the
engine's own host memory is compared in tests/mcore/test_input_offload.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from alia_ctx.planner import plan_stage
from alia_ctx.planner.memory import GIB, RankMemory
from alia_ctx.planner.stage import StagePlan
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.planner.test_planner import LONGEST

T, H = 163_840, 8192
ALIA = ModelSpec(8, H, 24_576, 64, 8, 128, 8192)
ONE = ClusterSpec(ranks_per_node=1, memory_gib=80, host_memory_gib=512)


def planned(
    layout: Layout = Layout(),  # noqa: B008
    rows: int = 1,
    *,
    offload: bool = True,
    **changes: Any,
) -> StagePlan:
    world, cluster = layout.model_ranks, changes.pop("cluster", ONE)
    cluster = replace(cluster, ranks_per_node=world)
    return plan_stage(
        *(ALIA, LONGEST, T, layout, world, 10**9, rows * T, "full"),
        cluster=cluster,
        offload=offload,
        **changes,
    )


def bytes_of(rank: RankMemory) -> tuple[int, int]:
    """(activations on the GPU, inputs on the host)."""
    return round(rank.items["activations"] * GIB), round(rank.offloaded * GIB)


def test_one_gpu_keeps_two_inputs_and_the_host_all_but_one() -> None:
    size = T * H * 2
    away, plain = planned().memory[0], planned(offload=False).memory[0]
    assert bytes_of(away) == (2 * size, 7 * size)
    assert bytes_of(plain) == (8 * size, 0)
    for name in away.items.keys() - {"activations"}:
        assert away.items[name] == plain.items[name]
    assert planned().host_items["offloaded activations"] * GIB == pytest.approx(
        7 * size
    )


def test_rows_in_flight_of_a_pipeline() -> None:
    """Of 4 layers a rank and 6 rows: the first has two in flight and gives what they
    leave it with to the second, which has one, and the first layer's input of it.
    """
    size = T * H * 2 // 4
    first, last = planned(Layout(tp=4, pp=2), 6).memory
    assert bytes_of(first) == ((2 + 2) * size, 2 * 4 * size)
    assert bytes_of(last) == ((2 + 1) * size, 2 * size)
    # One row has one in flight, and memory that is locked for two.
    alone = planned(Layout(tp=4, pp=2), 1).memory[0]
    assert bytes_of(alone) == ((2 + 1) * size, 2 * 4 * size)
    middle = planned(Layout(tp=1, pp=4), 6).memory[1]
    assert bytes_of(middle) == ((2 + 3 + 3) * 4 * size, 3 * 1 * 4 * size)


def test_copies_beside_the_computing_take_no_time() -> None:
    assert planned().timing == planned(offload=False).timing
    # Where a copy takes longer than a layer, what is left of it counts, both ways.
    slow = replace(ONE, host_gb_per_s=0.5)
    timing = planned(cluster=slow).timing
    moved = 2 * 8 * T * H * 2 / 0.5e9
    assert 0 < timing.offload < moved
    assert timing.offload == pytest.approx(moved - timing.compute, rel=1e-9)


def test_a_host_that_lacks_the_memory_is_said() -> None:
    poor = planned(cluster=replace(ONE, memory_gib=400, host_memory_gib=60))
    assert not poor.fits and "offloaded activations" in str(poor.host_items)
    assert "host memory" in poor.verdict


@pytest.mark.parametrize("chunk", [8192, 16_384, 2 * T])
def test_an_mlp_in_chunks(chunk: int) -> None:
    """Of a layer: what its attention part saves and its output, which stands until it is
    through, and the larger of two peaks. The MLP's: gradient of all its input, and of a chunk
    its output with gate, up, product, the gradients of all three and a weight's, or gradients
    of gate and up, their input's and all weights'. The attention's, when the MLP's norm and
    its input are gone and the gradient that came is still there: dQ in fp32 and bf16, the
    output's gradient; those of keys and values in bf16 and fp32.
    """
    rank = planned(mlp_chunk_tokens=chunk).memory[0]
    c, f, keys = min(chunk, T), 24_576, 2 * 8 * 128
    of_chunk = max(5 * c * f * 2 + H * f * 2, 2 * c * f * 2 + c * H * 2 + 3 * H * f * 2)
    mlp = T * H * 2 + c * H * 2 + of_chunk
    attention = T * H * (4 + 2 * 2) + T * keys * (2 + 4) - 2 * T * H * 2 + T * H * 2
    saved = 4 * T * H * 2 + 2 * T * H * 2 + T * 64 * 4
    expected = saved + max(mlp, attention)
    assert rank.items["working memory"] * GIB == pytest.approx(expected)
    plain = planned().memory[0]
    others = rank.items.keys() - {"working memory"}
    assert all(rank.items[name] == plain.items[name] for name in others)


def test_chunks_count_with_full_recomputation_alone() -> None:
    def memory(recompute: str, chunk: int | None) -> float:
        plan = plan_stage(
            *(ALIA, LONGEST, T, Layout(), 1, 10**9, T, recompute),  # type: ignore[arg-type]
            cluster=ONE,
            mlp_chunk_tokens=chunk,
        )
        return plan.memory[0].total

    assert memory("full", 8192) < memory("full", None) - 25
    for recompute in ("none", "selective"):
        assert memory(recompute, 8192) == memory(recompute, None)


def test_eight_layers_of_alia_fit_one_gpu_of_80_gib_without_the_optimizers_state() -> (
    None
):
    rank = planned(mlp_chunk_tokens=16_384).memory[0]
    alone = sum(rank.items.values()) - rank.items["optimizer"]
    assert (
        alone < 79 < sum(planned().memory[0].items.values()) - rank.items["optimizer"]
    )
