"""Memory of FP8 products, item by item, counted here from what TransformerEngine keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alia_ctx.planner.memory import GIB, rank_memory
from alia_ctx.planner.workload import Workload
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
