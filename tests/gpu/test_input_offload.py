"""Inputs of recomputed layers on the host, on a GPU: the same training to the bit, device
memory that falls by what left, and host memory that stays what it was.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.test_step import BF16
from tests.module_result import result_of

pytestmark = [pytest.mark.gpu(1), pytest.mark.timeout(600)]
EXACT = ("losses", "norms", "weights")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    result: dict[str, Any] = result_of("tests.gpu.input_offload", timeout=500)
    print({name: result[name] for name in ("plain", "away")})
    return result


def test_training_is_the_same_to_the_bit(found: dict[str, Any]) -> None:
    plain, again, away = found["plain"], found["again"], found["away"]
    assert all(again[name] == plain[name] for name in EXACT), (
        "the same twice differs: nothing can be said of offloading"
    )
    for name in EXACT:
        assert away[name] == plain[name]
    assert plain["losses"][-1] < plain["losses"][0]


def test_two_inputs_are_left_on_the_gpu(found: dict[str, Any]) -> None:
    """In the backward of the last layer all inputs are there without."""
    for plain, away in zip(
        found["plain"]["peaks"], found["away"]["peaks"], strict=True
    ):
        freed = (found["layers"] - 2) * found["input bytes"]
        assert plain - away == pytest.approx(freed, rel=0.05)


def test_host_memory_is_pinned_and_does_not_grow(found: dict[str, Any]) -> None:
    away = found["away"]
    assert away["pinned"]
    away_at_once = found["layers"] - 1  # all are back after an update
    assert away["buffers"] == [[away_at_once, away_at_once, 0]] * 3
    assert away["buffer bytes"] == found["input bytes"]


def test_an_mlp_in_chunks_trains_alike_in_less_memory(found: dict[str, Any]) -> None:
    """Gate, up and product of a row are 3 x 16,384 numbers a token, 24 inputs' worth."""
    away, chunks = found["away"], found["chunks"]
    assert chunks["losses"][0] == pytest.approx(
        away["losses"][0], rel=BF16["first loss"]
    )
    assert chunks["losses"] == pytest.approx(away["losses"], rel=BF16["later losses"])
    assert chunks["norms"] == pytest.approx(away["norms"], rel=BF16["norms"])
    assert min(away["peaks"]) - max(chunks["peaks"]) > 12 * found["input bytes"]
