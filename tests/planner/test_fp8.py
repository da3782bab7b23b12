"""Memory of FP8 products, item by item, counted here from what TransformerEngine keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alia_ctx.planner.memory import GIB, rank_memory
from alia_ctx.planner.timing import row_time
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec

ALIA = ModelSpec(8, 8192, 24576, 64, 8, 128, 256_000)
T = 32_768
BF16 = Workload(ALIA, T, Layout(), 1, T, T)


def items(work: Workload, rank: int = 0) -> dict[str, float]:
    return {k: round(v * GIB) for k, v in rank_memory(work, rank, 0.0).items.items()}


def test_one_gpu_without_recomputation() -> None:
    """Of each layer in FP8: both norms' outputs and the MLP's product in one byte for two,
    and each matrix twice in one byte.
    """
    for ends in (0, 1):
        fp8 = replace(BF16, fp8="current", fp8_bf16_layers=ends)
        layers = 8 - 2 * ends
        before, after = items(BF16), items(fp8)
        halved = layers * T * (8192 + 8192 + 24576)
        assert before["activations"] - after["activations"] == halved
        matrices = 8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 24576
        assert after["FP8 copies of weights"] == layers * 2 * matrices
        for name in ("weights", "gradients", "optimizer"):
            assert after[name] == before[name]


@pytest.mark.parametrize("recompute,kept", [("full", 0), ("selective", 8)])
def test_recomputed_layers_keep_one_copy(recompute: str, kept: int) -> None:
    fp8 = replace(BF16, fp8="blockwise", recompute=recompute)  # type: ignore[arg-type]
    attention = 8192 * (8192 + 2 * 1024) + 8192 * 8192
    mlp = 3 * 8192 * 24576
    again = mlp if recompute == "selective" else attention + mlp
    copies = items(fp8)["FP8 copies of weights"]
    assert copies == 2 * (kept * attention + again)


def test_a_block_has_a_scale_for_128_numbers() -> None:
    current = items(replace(BF16, fp8="current"))["activations"]
    blocks = items(replace(BF16, fp8="blockwise"))["activations"]
    assert blocks - current == 8 * T * (8192 + 8192 + 24576) * 4 // 128


def test_layers_of_transformer_engine_hold_an_empty_gradient_of_each_shape() -> None:
    """In bf16, and 32 MiB for cuBLAS; where it is not known whether they are taken, it is
    with the guesses.
    """
    matrices = 8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 24576
    once = 2 * matrices + 2**25
    assert items(replace(BF16, layers="te"))["TransformerEngine's buffers"] == once
    auto = rank_memory(replace(BF16, layers="auto"), 0, 0.0)
    assert auto.without_guesses == rank_memory(BF16, 0, 0.0).total
    assert (auto.total - auto.without_guesses) * GIB == pytest.approx(once)


def test_the_peak_is_swiglus_where_the_product_is_in_one_byte() -> None:
    """Gradients of gate, up and their product in bf16 are there, the product is gone and so
    are the weights behind it in FP8, twice. Where the last layer keeps bf16 it is gone by
    the time of the one before.
    """
    ffn, down = T * 24576, 8192 * 24576
    small = replace(BF16, model=replace(ALIA, vocab_size=8))  # the loss is none of it
    fp8 = items(replace(small, fp8="current"))
    assert fp8["working memory"] == 3 * 2 * ffn - ffn - 2 * down
    assert items(small)["working memory"] == 2 * 2 * ffn
    ends = items(replace(small, fp8="current", fp8_bf16_layers=1))
    assert ends["working memory"] == 2 * 2 * ffn


def test_products_are_faster_and_the_rest_is_not() -> None:
    """By the profile of one H100: of 500.8 ms beside the attention 448.3 were products in
    bf16, and 258.5 with their casts in FP8.
    """
    cluster = ClusterSpec()
    work = replace(BF16, layers="te", model=replace(ALIA, vocab_size=8))
    plain, fp8 = (
        row_time(made, cluster, 0, "backward")
        for made in (work, replace(work, fp8="current"))
    )
    assert fp8.matrices / plain.matrices == pytest.approx(
        (500.8 - 448.3 + 258.5) / 500.8
    )
    assert fp8.attention == plain.attention
    half = replace(work, fp8="current", fp8_bf16_layers=2)
    between = row_time(half, cluster, 0, "backward").matrices
    assert between == pytest.approx((fp8.matrices + plain.matrices) / 2)


def test_the_head_is_in_bf16() -> None:
    work = replace(BF16, layers="te")
    times = [
        row_time(replace(made, fp8=fp8), ClusterSpec(), 0, "forward").matrices
        for made in (work, replace(work, model=replace(ALIA, vocab_size=512_000)))
        for fp8 in ("off", "current")
    ]
    assert times[0] - times[1] == pytest.approx(times[2] - times[3])


def test_each_row_in_flight_has_its_own_copies() -> None:
    """Of a pipeline of two, whose first rank has two rows in flight, cut by tp."""
    work = replace(
        BF16,
        layout=Layout(tp=2, pp=2),
        world_size=4,
        update_tokens=8 * T,
        fp8="current",
    )
    matrices = (8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 24576) // 2
    assert items(work, 0)["FP8 copies of weights"] == 2 * 4 * 2 * matrices
    assert items(work, 1)["FP8 copies of weights"] == 4 * 2 * matrices
