"""Two GPUs that share rows keep documents apart, and save in the background what they hold."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.pairs import PRECISIONS, SHARED
from tests.gpu.programs import results_of

pytestmark = [pytest.mark.gpu(2), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("pairs") / "results.json"
    return results_of("tests.gpu.pairs", out, ranks=2, timeout=300)


def no_leak(counts: dict[str, Any], layout: str) -> None:
    """No loss of another document moves by a bit; those of the changed one do."""
    print(layout, counts)
    assert counts["own_moved"] > 0, "the model does not read its input"
    assert counts["positions"] > 1000
    # Context-parallel ranks each have a part of the row; of tensor-parallel ones the first
    # says the losses.
    said = [positions > 0 for positions in counts["parts"]]
    assert said == {"cp2": [True, True], "tp2": [True, False]}[layout]
    assert counts["moved"] == 0


def held_its_moment(save: dict[str, Any]) -> None:
    assert save["moved"] == [True, True], "nothing was trained meanwhile"
    assert save["saved"] == [True, True]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", SHARED)
def test_no_document_sees_another(
    found: dict[str, Any], layout: str, precision: str
) -> None:
    no_leak(found[f"leaks {layout} {precision}"], layout)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_background_save_holds_its_moment_on_both(
    found: dict[str, Any], precision: str
) -> None:
    held_its_moment(found[f"save dp2 {precision}"])
