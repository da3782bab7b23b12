"""The GPUs that tests of several workers have."""

from __future__ import annotations

import pytest

from tests.gpu.shares import WORKER, share_of_worker


def test_workers_have_gpus_of_their_own() -> None:
    four = ["0", "2", "5", "GPU-7"]
    pairs = [share_of_worker(four, 2, {WORKER: f"gw{n}"}) for n in range(2)]
    assert pairs == [["0", "2"], ["5", "GPU-7"]]
    ones = [share_of_worker(four, 1, {WORKER: f"gw{n}"}) for n in range(4)]
    assert ones == [[device] for device in four]
    assert share_of_worker(four, 3, {}) == four[:3], "one process"


@pytest.mark.parametrize(("each", "worker"), [(2, 2), (3, 1), (5, 0), (0, 0), (-1, 1)])
def test_none_has_fewer(each: int, worker: int) -> None:
    with pytest.raises(ValueError, match="of 4 GPUs: start fewer"):
        share_of_worker("0123", each, {WORKER: f"gw{worker}"})
