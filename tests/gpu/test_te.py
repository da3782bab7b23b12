"""TransformerEngine's layers against the local ones, and FP8 against bf16, on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.installed import is_installed
from tests.gpu.test_step import BF16
from tests.mcore.test_state import tensors
from tests.module_result import result_of

pytestmark = [
    pytest.mark.gpu(1),
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not is_installed("te"), reason="TransformerEngine is not installed"
    ),
]

# Relative, by the numbers' formats: a factor in E4M3 is off by up to 2**-4, in E5M2 by up to
# 2**-3, at random; a loss is a mean over 190 tokens, a norm over a weight's entries, which
# both average. 20 updates at random text teach each run alike: further apart than a tenth
# of what is learnt they would not be the same training.
FP8_FIRST_LOSS, FP8_NORMS, FP8_LEARNT = 5e-3, 0.1, 0.1
EXACT = 1e-3  # the same arithmetic in another order: dQ is added up by atomics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("te")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = result_of("tests.gpu.te", str(folder), timeout=500)
    for name in ("local", "te", "current", "blockwise"):
        print(f"\n{name}: {result[name]['losses']}")
    return result


def test_auto_takes_them_where_they_work(found: dict[str, Any]) -> None:
    assert found["te"]["words"].startswith("TransformerEngine 2.")
    assert found["te"]["passed over"] == []


@pytest.mark.parametrize("way", ["norms", "odd norms"])
def test_bf16_is_that_of_the_local_layers(found: dict[str, Any], way: str) -> None:
    te, local = found["te"], found["local"]
    assert te["measured"] == pytest.approx(local["measured"], rel=0.05, abs=0.05)
    assert te["losses"][0] == pytest.approx(local["losses"][0], rel=BF16["first loss"])
    assert te["losses"][:3] == pytest.approx(
        local["losses"][:3], rel=BF16["later losses"]
    )
    assert te[way] == pytest.approx(local[way], rel=BF16["norms"])


def test_gradients_added_in_the_product_are_those_added_after(
    found: dict[str, Any],
) -> None:
    fused, after = found["te"], found["not fused"]
    assert fused["norms"] == pytest.approx(after["norms"], rel=BF16["norms"])
    # Four products in each of two layers.
    assert (fused["added in products"], after["added in products"]) == (8, 0)


@pytest.mark.parametrize("fp8", ["current", "blockwise"])
def test_fp8_is_near_bf16_and_learns_as_much(found: dict[str, Any], fp8: str) -> None:
    scaled, bf16 = found[fp8], found["te"]
    first = bf16["losses"][0]
    assert scaled["losses"][0] == pytest.approx(first, rel=FP8_FIRST_LOSS)
    assert scaled["losses"][0] != first, "nothing was computed in FP8"
    assert scaled["norms"] == pytest.approx(bf16["norms"], rel=FP8_NORMS)
    learnt = first - bf16["losses"][-1]
    assert learnt > 0.5
    assert scaled["losses"] == pytest.approx(bf16["losses"], abs=FP8_LEARNT * learnt)


def test_scales_of_blocks_are_others(found: dict[str, Any]) -> None:
    assert found["blockwise"]["losses"][0] != found["current"]["losses"][0]


@pytest.mark.parametrize("fp8", ["current", "blockwise"])
def test_what_is_measured_is_not_in_fp8(found: dict[str, Any], fp8: str) -> None:
    assert found[fp8]["measured"] == found["te"]["measured"]


@pytest.mark.parametrize("fp8", ["current", "blockwise"])
def test_rows_that_fp8_cannot_take_are_padded(found: dict[str, Any], fp8: str) -> None:
    """264 tokens, of which FP8 products take 272."""
    scaled, bf16 = found[fp8], found["te"]
    assert scaled["odd"][0] == pytest.approx(bf16["odd"][0], rel=FP8_FIRST_LOSS)
    assert scaled["odd norms"] == pytest.approx(bf16["odd norms"], rel=FP8_NORMS)


def test_padding_touches_nothing(found: dict[str, Any]) -> None:
    plain, padded = found["padded"]["1"], found["padded"]["16"]
    assert (plain["tokens"], padded["tokens"]) == ([264], [272])
    assert padded["losses"] == pytest.approx(plain["losses"], rel=EXACT)
    assert padded["norms"] == pytest.approx(plain["norms"], rel=EXACT)


@pytest.mark.parametrize("way", ["te-local", "local-te"])
def test_checkpoints_go_over_to_the_bit(
    found: dict[str, Any], folder: Path, way: str
) -> None:
    before = tensors(folder / way / "state")
    after = tensors(folder / f"{way}-again" / "state")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
