"""The search for layouts against every layout planned by itself, and what it says of hosts,
disk, masks and small jobs.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from alia_ctx.errors import LayoutError
from alia_ctx.planner import (
    RowSizes,
    StagePlan,
    best_by_count,
    choices_table,
    duration,
    plan_stage,
    plan_table,
    powers_of_two,
    suggest_layouts,
    why_first,
)
from alia_ctx.planner.memory import GIB
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.machines import MACHINES
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from tests.planner.test_planner import ALIA, LONG, LONGEST, plan_32k, shown, tiny

NODES = ClusterSpec(ranks_per_node=4)
SIZES = (2 * 10**9, 4_194_304)
MODES = list(itertools.product(["none", "selective", "full"], [False, True]))


def every_plan(world: int, cluster: ClusterSpec) -> list[StagePlan]:
    """All layouts of `world` GPUs, whatever divides, in every mode."""
    sizes = [n for n in range(1, world + 1) if world % n == 0]
    plans = []
    for tp, cp, pp in itertools.product(sizes, repeat=3):
        for recompute, offload in MODES:
            try:
                plans.append(
                    plan_stage(
                        ALIA, LONG, 32_768, Layout(tp, cp, pp), world, *SIZES, recompute,
                        cluster=cluster, offload=offload,
                    )
                )  # fmt: skip
            except LayoutError:
                continue
    return plans


@pytest.mark.parametrize(("world", "gib"), [(16, 64), (32, 48), (64, 40)])
def test_the_first_is_the_simplest_of_those_that_are_as_fast_as_the_fastest(
    world: int, gib: int
) -> None:
    cluster = replace(NODES, memory_gib=gib)
    first = suggest_layouts(
        ALIA, LONG, 32_768, world, *SIZES, cluster=cluster, offload=None
    )[0]
    usable = [
        (plan.timing.total, plan.work.layout.model_ranks)
        for plan in every_plan(world, cluster)
        if plan.fits and not plan.idle_ranks and plan.work.layout.tp <= 4
    ]
    fastest = min(usable)[0]
    assert first.fits and first.plan.timing.total <= 1.05 * fastest
    assert first.layout.model_ranks == min(
        ranks for seconds, ranks in usable if seconds <= 1.05 * fastest
    )


def test_offloading_is_taken_where_nothing_fits_without() -> None:
    small = replace(NODES, memory_gib=60, host_memory_gib=4096)
    arguments: Any = (ALIA, LONGEST, 163_840, 32, 10**9, 4_096_000)
    without = suggest_layouts(*arguments, cluster=small)[0]
    offloaded = suggest_layouts(*arguments, cluster=small, offload=None)[0]
    assert offloaded.usable
    if without.usable:
        assert offloaded.plan.timing.total <= without.plan.timing.total
    roomy = suggest_layouts(
        ALIA, LONG, 32_768, 256, *SIZES, cluster=NODES, offload=None
    )
    assert not roomy[0].offload


def test_offloaded_activations_need_the_hosts_memory() -> None:
    base: Any = (ALIA, LONGEST, 163_840, Layout(4, 4, 2), 32, 10**9, 4_096_000, "none")
    plan = plan_stage(*base, cluster=NODES, offload=True)
    without = plan_stage(*base, cluster=NODES)
    moved = plan.memory[0].offloaded
    kept = sum(
        without.memory[0].items[n] for n in ("activations", "collected keys and values")
    )
    assert moved == pytest.approx(kept)
    assert plan.host_items["offloaded activations"] == pytest.approx(4 * moved)
    assert plan.timing.offload > 0 == without.timing.offload
    poor = replace(NODES, host_memory_gib=100, memory_gib=1000)
    tight = plan_stage(*base, cluster=poor, offload=True)
    assert not tight.fits and "host memory" in tight.verdict


def test_each_number_of_gpus_has_its_best_and_why_others_fall() -> None:
    counts = best_by_count(
        ALIA, LONG, 32_768, powers_of_two(256), *SIZES, cluster=NODES
    )
    assert [count.gpus for count in counts] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    usable = [count.best.usable for count in counts]
    assert usable == sorted(usable) and usable[-1] and not usable[0]
    for count in counts:
        assert (
            count.best
            == suggest_layouts(ALIA, LONG, 32_768, count.gpus, *SIZES, cluster=NODES)[0]
        )
        for miss in count.misses:
            assert "does not fit" in miss.reason
    assert powers_of_two(800)[-2:] == [512, 800]
    assert powers_of_two(1) == [1]


def test_a_layout_must_suit_the_shortest_row_too() -> None:
    def layouts(shortest: int | None) -> set[Layout]:
        choices = suggest_layouts(
            ALIA, LONGEST, 163_840, 32, *SIZES, shortest_row=shortest
        )
        return {choice.layout for choice in choices}

    all_rows, short = layouts(None), layouts(16)
    assert short < all_rows
    assert all(16 % (2 * at.cp) == 0 == 16 % (at.cp * at.tp) for at in short)


# --- hosts, disk, the step, masks -----------------------------------------------------


def test_the_optimizers_step_takes_roots_of_all_moments_at_once() -> None:
    plan = tiny(update_tokens=64)
    (rank,) = plan.memory
    owned = rank.parameters  # one GPU owns all
    expected = owned * (2 + 4 + 12 + 4) / GIB + plan.cluster.overhead_gib
    assert sum(rank.step_items.values()) == pytest.approx(expected)
    # With hardly any activations it is the peak, and says so.
    large = replace(ALIA, num_hidden_layers=1, vocab_size=8)
    one = plan_stage(large, LONG, 32_768, Layout(8, 8, 1), 64, 10**6, 32_768, "full")
    assert one.fullest.total >= sum(one.fullest.step_items.values())


def test_a_save_copies_14_bytes_a_parameter_of_its_ranks() -> None:
    plan = plan_32k()
    most = max(rank.parameters for rank in plan.memory)
    copies = plan.cluster.ranks_per_node * most * 14 / (4 * 8)
    assert plan.host_items["copy for a save"] == pytest.approx(copies / GIB)
    assert plan.checkpoint_gib == pytest.approx(40_433_885_184 * 14 / GIB)
    fp32 = plan_32k(precision="fp32")
    assert fp32.checkpoint_gib == pytest.approx(40_433_885_184 * 12 / GIB)


def test_node_hours_are_of_whole_nodes() -> None:
    plan = plan_32k()
    assert plan.nodes == 64
    assert plan.node_hours == pytest.approx(plan.timing.total * 477 / 3600 * 64)
    assert tiny(world_size=1).nodes == 1


def test_masks_of_the_plan_count_and_time() -> None:
    documents = [9, 4, 3]
    pairs = sum(n * (n + 1) / 2 for n in documents)
    whole, masked = tiny(), tiny(packed=RowSizes(16, 16, pairs))
    per_row = whole.work.model.attention_flops(documents)
    assert masked.flops_per_token[1] == pytest.approx(per_row / 16)
    assert masked.masked_share == pytest.approx(pairs / (16 * 17 / 2))
    assert masked.timing.compute < whole.timing.compute
    assert whole.masked_share is None
    assert "masked as in the pack plan" in shown(plan_table(masked))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0042, "4.2 ms"), (3.25, "3.2 s"), (75, "75.0 s"), (600, "10.0 min"),
        (7200, "2.0 hours"), (36 * 3600, "36.0 hours"), (50 * 86_400, "50.0 days"),
    ],
)  # fmt: skip
def test_small_jobs_are_said_in_small_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_small_job_takes_seconds() -> None:
    model = ModelSpec(2, 64, 128, 4, 2, 16, 256)
    plan = plan_stage(
        model, LONG, 32_768, Layout(), 1, 65_536, 32_768, cluster=ClusterSpec()
    )
    text = shown(plan_table(plan))
    assert "0.0 hours" not in text and (" ms" in text or " s" in text)


def test_fp8_takes_no_layout_that_only_its_memory_would_pay_for() -> None:
    """Of two H100, rows of 65,536: in bf16 two data-parallel ranks are first. FP8 leaves
    more room, and tensor parallelism is planned to be as fast to a twentieth.
    """
    model = ModelSpec(24, 2048, 8192, 16, 4, 128, 128_000)
    cluster = replace(MACHINES["h100-80"], ranks_per_node=2)
    rope = RopeSpec("default", 500_000.0)
    arguments: Any = (model, rope, 65_536, 2, 327_680_000, 655_360)
    for fp8 in ("off", "current"):
        first = suggest_layouts(*arguments, cluster=cluster, layers="te", fp8=fp8)[0]
        assert first.layout == Layout() and first.fits


def test_what_may_fit_is_taken_after_all_that_fits_and_only_then() -> None:
    """The card has room for what is counted, and not for the guess of overhead."""
    arguments: Any = (ALIA, LONG, 32_768, 64, *SIZES)
    free = replace(NODES, overhead_gib=0.0)
    smallest = min(
        (
            c
            for c in suggest_layouts(*arguments, cluster=free, recompute="none")
            if c.fits
        ),
        key=lambda choice: choice.plan.fullest.total,
    )
    tight = replace(NODES, memory_gib=smallest.plan.fullest.total * 1.0001)
    choices = suggest_layouts(*arguments, cluster=tight, recompute="none")
    assert not any(choice.fits for choice in choices)
    assert choices[0].usable and choices[0].plan.may_fit
    assert choices[0].reason.startswith("may fit") and "a guess" in choices[0].reason
    roomy = replace(tight, memory_gib=tight.memory_gib + 5)
    assert suggest_layouts(*arguments, cluster=roomy, recompute="none")[0].fits


SEVEN = ModelSpec(32, 4096, 11_008, 32, 32, 128, 32_000)


def test_a_first_row_that_is_not_the_fastest_says_why() -> None:
    """What cuts more may be faster by less than a twentieth, and what may fit by more."""
    told = set()
    for world, gib in itertools.product((8, 16, 32, 64), (40, 64, 80)):
        cluster = replace(NODES, memory_gib=gib)
        choices = suggest_layouts(
            ALIA, LONG, 32_768, world, *SIZES, cluster=cluster, offload=None
        )
        seconds = {c.plan.timing.total: c for c in choices if c.usable}
        words, table = why_first(choices), shown(choices_table(choices))
        if not seconds or choices[0] is seconds[min(seconds)]:
            assert not words and "not the fastest" not in table
            continue
        fastest = seconds[min(seconds)]
        less = 1 - min(seconds) / choices[0].plan.timing.total
        assert f"is planned to take {less:.1%} less" in words
        assert "The first row is not the fastest" in table
        if fastest.fits:
            assert "within 5% of the fastest" in words and less < 0.05
        else:
            assert words.endswith("what may fit comes after all that fits.")
        told.add(fastest.fits)
    assert told == {True, False}


def test_fp8_takes_no_clearly_slower_layout() -> None:
    """A model of 7 billion parameters on eight H100, rows of 32,768: what cuts less was
    taken with a tenth more time.
    """
    rope = RopeSpec("llama3", 10_000.0, 8.0, 4096, 1.0, 4.0)
    arguments: Any = (SEVEN, rope, 32_768, 8, 704_512_000, 1_409_024)
    choices = suggest_layouts(
        *arguments, cluster=MACHINES["h100-80"], layers="te", fp8="current",
        fp8_bf16_layers=1,
    )  # fmt: skip
    usable = [c.plan.timing.total for c in choices if c.usable]
    assert usable[0] <= 1.05 * min(usable)
    simpler = [
        c for c in choices if c.layout.model_ranks < choices[0].layout.model_ranks
    ]
    assert any(c.fits and c.plan.timing.total <= 1.15 * min(usable) for c in simpler)
