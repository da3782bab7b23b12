"""Layers over TransformerEngine beside the local ones, on a host: Megatron-Core's classes
over a stand-in that has its names and computes by torch (`te_stand_in.py`).

What a GPU alone can show, its kernels, is in `tests/gpu/test_te.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mcore.test_state import tensors
from tests.module_result import result_of

pytestmark = pytest.mark.timeout(600)

LAYERS = 4
PRODUCTS = 4 * LAYERS  # of a forward: QKV, projection, gate with up, down
# Roundings of bf16 (2**-9), which fall elsewhere where a weight's gradient is formed in
# fp32 at once; three updates pass them on.
GRADIENTS, LOSSES = 0.01, 2e-4
# FP8 keeps 3 bits of a number's fraction; a loss is a mean over 300 tokens.
FP8_LOSSES = 2e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("te")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = result_of(
        "tests.mcore.te_layers", str(folder), timeout=500
    )
    return result


@pytest.mark.parametrize("model", ["plain", "qwen2", "qwen3"])
def test_both_kinds_compute_the_same(found: dict[str, Any], model: str) -> None:
    compared = found[model]
    assert compared["te"][0] == pytest.approx(compared["local"][0], rel=1e-5)
    assert compared["te"] == pytest.approx(compared["local"], rel=LOSSES)
    assert compared["gradients"] < GRADIENTS


def test_checkpoints_of_both_kinds_name_and_cut_alike(found: dict[str, Any]) -> None:
    """What a sharded state calls each tensor, and its whole shape; extra states alone are
    more on one side.
    """
    te, local = (
        {key: what for key, what in found["shapes"][layers].items()}
        for layers in ("te", "local")
    )
    extra = {key for key, (kind, _) in te.items() if kind == "ShardedObject"}
    assert {k: v for k, v in te.items() if k not in extra} == {
        k: v for k, v in local.items() if v[0] != "ShardedObject"
    }
    assert all(key.endswith("_extra_state") for key in extra)


@pytest.mark.parametrize("way", ["te-local", "local-te", "te-te"])
def test_a_stage_goes_on_with_the_other_kind(
    found: dict[str, Any], folder: Path, way: str
) -> None:
    """Weights, main weights and moments go over to the bit, those of FP8 training too."""
    before = tensors(folder / way / "state")
    after = tensors(folder / f"{way}-again" / "state")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert found["go on"][way] == pytest.approx(found["go on"]["te-te"], rel=LOSSES)


def test_no_recipe_of_fp8_is_pickled_into_a_checkpoint(
    found: dict[str, Any], folder: Path
) -> None:
    """Reading it would need TransformerEngine, and run what it says."""
    assert found["go on"]
    for file in (folder / "te-te" / "state").iterdir():
        assert b"te_stand_in" not in file.read_bytes(), file


@pytest.mark.parametrize("fp8", ["current", "blockwise"])
def test_fp8_is_in_training_alone_and_spares_both_ends(
    found: dict[str, Any], fp8: str
) -> None:
    recipe = {"current": "Float8CurrentScaling", "blockwise": "Float8BlockScaling"}[fp8]
    runs = found["fp8"][fp8]
    ends, middle = ["off"] * 4, [recipe] * (PRODUCTS - 8)
    assert [name for name, _ in runs["training"]] == ends + middle + ends
    for measured in ("measuring", "logits", "without optimizer"):
        assert [name for name, _ in runs[measured]] == ["off"] * PRODUCTS, measured
    recomputed = [name for name, _ in runs["recomputed"]]
    assert recomputed == [recipe] * 2 * PRODUCTS
    assert {tokens for _, tokens in runs["training"]} == {96}, "64, and padding to 48s"


@pytest.mark.parametrize("fp8", ["current", "blockwise"])
def test_fp8_learns_as_bf16_does(found: dict[str, Any], fp8: str) -> None:
    """The stand-in rounds to FP8 and back, so that a wrong scale or a missing gradient
    shows; what the kernels do is for a GPU to show.
    """
    trained = found["fp8"][fp8]["trained"]
    assert trained == pytest.approx(found["bf16"], rel=FP8_LOSSES)
    assert trained[0] != found["bf16"][0]
    assert found["fp8"][fp8]["selective"] == pytest.approx(trained[:2], rel=LOSSES)


def test_products_add_gradients_where_their_weights_come_back_whole(
    found: dict[str, Any],
) -> None:
    """Hooks on saved tensors return a weight without the attributes in which it is noted."""
    training, offloaded, evaluating = found["fused"]
    assert training == [True] * PRODUCTS
    assert offloaded == evaluating == [False] * PRODUCTS
    assert found["offloaded"] == pytest.approx(found["plain"]["te"], rel=LOSSES)


def test_padding_does_not_move_the_scales_of_fp8(found: dict[str, Any]) -> None:
    plain, padded = found["padded"]
    assert padded == pytest.approx(plain, rel=1e-6)
