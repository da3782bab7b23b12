"""The planner's arithmetic against published facts and sums by hand."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from alia_ctx.errors import ConfigError, LayoutError
from alia_ctx.planner import (
    StagePlan,
    choices_table,
    first_negative_distance,
    inverse_frequencies,
    memory_table,
    plain_bases,
    plan_stage,
    plan_table,
    rope_reach,
    suggest_layouts,
)
from alia_ctx.planner.memory import GIB, rank_parameters
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

ALIA = ModelSpec(48, 8192, 24576, 64, 8, 128, 256_000)
TINY = ModelSpec(4, 8, 16, 4, 2, 2, 32)
BASE = RopeSpec("default", 10_000)
LONG = RopeSpec("llama3", 10_000, 8, 4096, 1, 4)
LONGEST = RopeSpec("llama3", 10_000, 40, 4096, 1, 4)


def plan_32k(layout: Layout = Layout(4, 8, 2), **changes: object) -> StagePlan:  # noqa: B008
    arguments = {
        "world_size": 256,
        "tokens": 2 * 10**9,
        "update_tokens": 4_194_304,
        **changes,
    }
    return plan_stage(ALIA, LONG, 32_768, layout, **arguments)  # type: ignore[arg-type]


def plan_160k(layout: Layout = Layout(4, 20, 2), **changes: object) -> StagePlan:  # noqa: B008
    arguments = {
        "world_size": 800,
        "tokens": 36_800_000_000,
        "update_tokens": 4_194_304,
        **changes,
    }
    return plan_stage(ALIA, LONGEST, 163_840, layout, **arguments)  # type: ignore[arg-type]


def tiny(
    recompute: str = "none",
    layout: Layout = Layout(),  # noqa: B008
    **changes: object,
) -> StagePlan:
    arguments = {
        "world_size": layout.model_ranks,
        "tokens": 640,
        "update_tokens": 64,
        "recompute": recompute,
        **changes,
    }
    rope = RopeSpec("default", 10_000)
    return plan_stage(TINY, rope, 16, layout, **arguments)  # type: ignore[arg-type]


# --- tokens and rows ------------------------------------------------------------------


def test_an_update_of_4m_tokens_is_whole_rows() -> None:
    at_32k, at_160k = plan_32k().work, plan_160k().work
    assert (at_32k.rows_per_update, at_32k.tokens_per_update) == (128, 4_194_304)
    assert (at_160k.rows_per_update, at_160k.tokens_per_update) == (25, 4_096_000)
    assert plan_160k(update_tokens=3_932_160).work.rows_per_update == 24
    assert plan_160k(update_tokens=1).work.rows_per_update == 1


def test_updates_reach_the_budget() -> None:
    work = plan_32k().work
    assert work.updates == math.ceil(2e9 / 4_194_304) == 477


def test_ranks_may_take_unequal_rows() -> None:
    plan = plan_160k(Layout(4, 5, 4), world_size=800)
    assert plan.work.data_parallel == 10
    assert plan.work.rows_per_rank == (2, 3)
    assert plan_160k(Layout(4, 2, 2)).idle_ranks == 50 - 25


# --- facts of ALIA-40b ----------------------------------------------------------------


def test_flops_per_token_at_160k() -> None:
    linear, attention = plan_160k().flops_per_token
    assert linear + attention == pytest.approx(6.17e11, rel=1e-3)
    assert attention / (
        6.0 * (ALIA.parameters() - ALIA.embedding_parameters())
    ) == pytest.approx(1.68, abs=0.005)


def test_a_rows_logits_are_156_gib() -> None:
    assert plan_160k().row_logits_gib == 156.25


def test_the_published_32k_layout_fits_in_64_gib() -> None:
    plan = plan_32k(recompute="selective")
    assert plan.fits
    assert plan.fullest.largest == "gradients"


def test_time_at_a_given_mfu() -> None:
    plan = plan_32k()
    flops = sum(plan.flops_per_token) * 4_194_304
    assert plan.seconds_at_mfu(0.4) == pytest.approx(flops / (256 * 989e12 * 0.4))
    assert plan.days_at_mfu(0.4) == pytest.approx(
        plan.seconds_at_mfu(0.4) * 477 / 86_400
    )
    assert plan.seconds_at_mfu(plan.timing.mfu) == pytest.approx(plan.timing.total)


# --- memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize(
    "model",
    [TINY, replace(TINY, qk_norm=True, attention_bias=True), ALIA],
    ids=lambda m: m.vocab_size,
)
def test_pipeline_ranks_hold_the_model_once(model: ModelSpec, pp: int) -> None:
    work = Workload(model, 32, Layout(1, 1, pp), pp, 64, 32)
    assert sum(rank_parameters(work, rank) for rank in range(pp)) == model.parameters()


def test_a_tied_table_is_held_on_both_ends_of_a_pipeline() -> None:
    tied = replace(TINY, tie_word_embeddings=True)
    for pp, copies in ((1, 0), (2, 1)):
        work = Workload(tied, 32, Layout(1, 1, pp), pp, 64, 32)
        held = sum(rank_parameters(work, rank) for rank in range(pp))
        assert held == tied.parameters() + copies * tied.embedding_parameters()


def test_tensor_parallelism_cuts_matrices_and_pads_the_vocabulary() -> None:
    odd = replace(TINY, vocab_size=33)
    whole, half = (
        rank_parameters(Workload(odd, 32, Layout(tp), tp, 64, 32), 0) for tp in (1, 2)
    )
    norms = (2 * 4 + 1) * 8
    assert (
        2 * half == whole - norms + 2 * norms + 2 * 8
    )  # norms whole on both, a padded word in both tables


def test_memory_of_a_tiny_model_by_hand() -> None:
    """TINY in bf16 on one GPU, T = 16 tokens:

    every item from the shapes, independently of the code's formulas.
    """
    (rank,) = tiny(loss_chunk_tokens=4).memory
    parameters = (
        4 * (8 * 8 + 8 * 8 + 8 * 8 + 3 * 8 * 16 + 16) + 2 * 32 * 8 + 8
    )  # q, k+v, o, mlp, norms; tables
    assert parameters == TINY.parameters()
    # elements of [T, h], [T, heads*d], [T, ffn]
    hidden, query, wide = 16 * 8, 16 * 4 * 2, 16 * 16
    expected = {
        "weights": parameters * 2,
        "gradients": parameters * 4,
        "optimizer": parameters * 12,
        "activations": 4
        * (
            2 * (4 * hidden + 2 * query + 3 * wide) + 4 * 16 * 4
        ),  # and lse: 4 heads in fp32
        "collected keys and values": 4 * 2 * 16 * (4 + 4),  # rotated keys, values
        "head gradient": 32 * 8 * (4 + 2),  # summed in fp32, then rounded
        "logits of a chunk": 4 * 32 * (4 + 2),
        "hidden states of the head": 3 * 2 * hidden,
        "RoPE's cos and sin": 16 * 2 * 4,  # half of a head's two numbers, both in fp32
    }
    # So small a layer's backward needs less than the loss; they do not coincide.
    assert sum(list(expected.values())[-4:-1]) > 4 * wide + 6 * hidden
    assert {
        name: round(gib * GIB)
        for name, gib in rank.items.items()
        if "guess" not in name
    } == expected
    assert rank.total == pytest.approx(sum(rank.items.values()))


def test_recomputation_saves_activations_and_costs_time() -> None:
    none, selective, full = (
        plan_32k(recompute=mode) for mode in ("none", "selective", "full")
    )
    saved = [plan.memory[0].items["activations"] for plan in (none, selective, full)]
    assert saved[0] > 2 * saved[1] > 2 * saved[2]
    assert none.timing.compute < selective.timing.compute < full.timing.compute
    assert none.flops_per_token == full.flops_per_token, (
        "recomputed work is not useful work"
    )


def test_the_optimizer_is_sharded_over_dp_and_cp() -> None:
    one, many = plan_32k(world_size=64), plan_32k(world_size=256)
    assert one.memory[0].items["optimizer"] == pytest.approx(
        4 * many.memory[0].items["optimizer"]
    )
    assert one.memory[0].items["weights"] == many.memory[0].items["weights"]


def test_early_pipeline_ranks_hold_more_rows_in_flight() -> None:
    plan = plan_32k(Layout(4, 4, 4))
    assert [rank.in_flight for rank in plan.memory] == [4, 3, 2, 1]
    single = plan_32k(Layout(4, 4, 4), update_tokens=32_768)
    assert {rank.in_flight for rank in single.memory} == {1}


def test_context_parallelism_halves_activations_but_not_collected_keys() -> None:
    less, more = plan_160k(Layout(4, 10, 2)), plan_160k(Layout(4, 20, 2))
    assert less.memory[0].items["activations"] == pytest.approx(
        2 * more.memory[0].items["activations"]
    )
    name = "collected keys and values"
    assert less.memory[0].items[name] == more.memory[0].items[name]


def test_the_head_is_on_the_last_pipeline_rank_only() -> None:
    first, last = plan_32k().memory
    assert "head gradient" not in first.items and "head gradient" in last.items


def test_what_does_not_fit_names_the_largest_item() -> None:
    plan = plan_32k(cluster=ClusterSpec(ranks_per_node=4, memory_gib=16))
    assert not plan.fits
    assert "does not fit" in plan.verdict and "gradients" in plan.verdict
    assert plan_32k(
        cluster=ClusterSpec(ranks_per_node=4, memory_gib=plan.fullest.total + 0.01)
    ).fits


# --- RoPE -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "context", "distance"),
    [(BASE, 4096, 1707), (LONG, 32_768, 11_089), (LONGEST, 163_840, 20_573)],
)
def test_first_distance_below_zero(rope: RopeSpec, context: int, distance: int) -> None:
    reach = rope_reach(rope, 128, context)
    assert reach.first_negative == distance and not reach.holds
    frequencies = inverse_frequencies(rope, 128, context)
    assert np.cos(np.arange(distance)[:, None] * frequencies).sum(axis=1).min() >= 0
    assert np.cos(distance * frequencies).sum() < 0


def test_a_large_base_holds() -> None:
    assert rope_reach(RopeSpec("default", 5e8), 128, 163_840).holds


def test_the_search_looks_at_every_distance_up_to_the_limit() -> None:
    frequencies = inverse_frequencies(BASE, 128, 4096)
    assert first_negative_distance(frequencies, 1707) is None
    assert first_negative_distance(frequencies, 1708) == 1707


def test_plain_bases_at_32k() -> None:
    smallest, safe = plain_bases(128, 32_768)
    assert (smallest, safe) == (pytest.approx(6.3e5), pytest.approx(1.9e6))


@pytest.mark.parametrize(
    "rope",
    [
        BASE,
        RopeSpec("linear", 10_000, 4),
        RopeSpec("dynamic", 10_000, 4, 4096),
        LONG,
        LONGEST,
        RopeSpec("yarn", 1e6, 8, 4096),
        RopeSpec("yarn", 1e6, 8, 4096, beta_fast=16, beta_slow=2, truncate=False),
    ],
    ids=lambda rope: f"{rope.type}-{rope.factor}-{rope.truncate}",
)
def test_frequencies_are_those_the_model_trains_with(rope: RopeSpec) -> None:
    from alia_ctx.nn import rotary as exact

    ours = inverse_frequencies(rope, 128, 8192 if rope.type != "default" else 4096)
    theirs, _ = exact.inverse_frequencies(rope, 128, 8192)
    assert ours == pytest.approx(
        theirs.double().numpy(), rel=2e-6
    )  # theirs are rounded to fp32 several times


# --- search ---------------------------------------------------------------------------


def test_suggestions_fit_and_come_fastest_first() -> None:
    choices = suggest_layouts(ALIA, LONG, 32_768, 256, 2 * 10**9, 4_194_304)
    usable = [choice for choice in choices if choice.fits]
    assert choices[: len(usable)] == usable and 0 < len(usable) < len(choices)
    assert all(choice.plan.fits and not choice.plan.idle_ranks for choice in usable)
    seconds = [choice.plan.timing.total for choice in usable[1:]]
    assert seconds == sorted(seconds)
    assert usable[0].plan.timing.total <= 1.05 * seconds[0], "no slower than is known"
    assert Layout(4, 8, 2) in [choice.layout for choice in usable[:5]], (
        "the published layout is among the best"
    )


def test_others_fall_for_a_reason() -> None:
    choices = suggest_layouts(ALIA, LONGEST, 163_840, 800, 36_800_000_000, 3_932_160)
    reasons = {choice.layout: choice.reason for choice in choices}
    assert "largest item is gradients" in reasons[Layout(1, 1, 1)]
    assert "have no row" in reasons[Layout(4, 2, 2)]
    assert "leaves the node" in reasons[Layout(8, 10, 2)]
    assert len(reasons) == len(choices), "each layout once"


def test_a_fitting_layout_takes_the_cheapest_recomputation() -> None:
    by_memory = {
        gib: next(
            c
            for c in suggest_layouts(
                ALIA,
                LONG,
                32_768,
                256,
                10**9,
                4_194_304,
                cluster=ClusterSpec(ranks_per_node=4, memory_gib=gib),
            )
            if c.layout == Layout(4, 8, 2)
        ).recompute
        for gib in (42, 45, 64)
    }
    assert by_memory == {42: "full", 45: "selective", 64: "none"}


# --- mistakes -------------------------------------------------------------------------


def test_a_layout_that_cannot_be_is_named() -> None:
    with pytest.raises(LayoutError, match=r"layout\.cp=24"):
        plan_160k(Layout(4, 24, 2), world_size=192)
    with pytest.raises(LayoutError, match="does not divide 100 ranks"):
        plan_32k(world_size=100)


def test_sizes_that_cannot_be_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_32k(tokens=0, update_tokens=-1, recompute="some", precision="fp8")
    assert {problem.key for problem in caught.value.problems} == {
        "tokens",
        "update_tokens",
        "recompute",
        "precision",
    }
    with pytest.raises(ConfigError, match=r"cluster\.efficiency=1\.5"):
        plan_32k(cluster=ClusterSpec(efficiency=1.5))
    with pytest.raises(ConfigError, match=r"rope\.factor"):
        plan_stage(ALIA, LONG, 163_840, Layout(4, 20, 2), 800, 10**9, 4_194_304)


# --- tables ---------------------------------------------------------------------------


def shown(table: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_tables_show_what_decides() -> None:
    plan = plan_160k(update_tokens=3_932_160)
    text = shown(plan_table(plan, "160k"))
    for part in (
        "24 rows x 163,840 = 3,932,160",
        "20,573",
        "156.25 GiB",
        "6.17e+11",
        "4 to 5 rows",
        "not measured",
    ):
        assert part in text
    memory = shown(memory_table(plan))
    assert f"{plan.memory[1].total:.2f}" in memory and "pp rank 1" in memory
    choices = shown(
        choices_table(
            suggest_layouts(ALIA, LONGEST, 163_840, 800, 10**9, 3_932_160), limit=100
        )
    )
    assert "tp=4 cp=20 pp=2" in choices and "fits" in choices
