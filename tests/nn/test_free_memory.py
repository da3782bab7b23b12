"""What is left in memory for what comes next."""

from __future__ import annotations

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
