"""What is left in memory for what comes next."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alia_ctx.nn.free_memory import fill_free_memory


@pytest.mark.parametrize("value", [float("nan"), 1e3])
def test_inputs_stay_and_no_generator_moves(value: float) -> None:
    parts = [torch.randn(24, 4, 64).bfloat16(), torch.randn(37, 64), torch.ones(3)]
    before, state = [part.clone() for part in parts], torch.get_rng_state()
    fill_free_memory(parts, value)
    assert all(map(torch.equal, parts, before))
    assert torch.equal(state, torch.get_rng_state())


def test_blocks_of_every_size_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch hands out in place of the parts' results: four blocks of each part's size in
    its own format, and in that of sums.
    """
    made: list[tuple[tuple[int, ...], torch.dtype, float]] = []
    full = torch.full

    def recorded(shape: torch.Size, value: float, **options: Any) -> torch.Tensor:
        tensor = full(shape, value, **options)
        made.append((tuple(tensor.shape), tensor.dtype, float(tensor.flatten()[-1])))
        return tensor

    monkeypatch.setattr(torch, "full", recorded)
    fill_free_memory([torch.ones(5, 2).bfloat16(), torch.ones(3)], value=7.0)
    assert sorted(made, key=str) == sorted(
        [((5, 2), torch.bfloat16, 7.0), ((5, 2), torch.float32, 7.0)] * 4
        + [((3,), torch.float32, 7.0)] * 4,
        key=str,
    )
