"""Temperatures of any size: what is drawn is a draw from softmax(logits / temperature)."""

from __future__ import annotations

import pytest
import torch

from alia_ctx.workflow.call_sampling import GumbelNoise

NAMES = [f"case {number}" for number in range(400)]


def draws(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    drawn = GumbelNoise(temperature, 0, NAMES)(None, logits.expand(len(NAMES), -1))
    assert torch.isfinite(drawn).all()
    return drawn.argmax(-1)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-6])
def test_hardly_any_is_greedy(temperature: float) -> None:
    """Though logits divided by it would be infinite, and the first of them be taken."""
    assert draws(torch.tensor([3.0, -5.0, 14.0, 13.9]), temperature).unique() == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 1e6, 1e300])
def test_shares_are_those_of_the_softmax(temperature: float) -> None:
    logits = torch.tensor([1.0, 0.0, 2.0])
    shares = draws(logits, temperature).bincount(minlength=3) / len(NAMES)
    expected = torch.softmax(logits.double() / temperature, 0)
    # Four standard errors of a share of 400 draws.
    assert (shares - expected).abs().max() < 4 * 0.5 / len(NAMES) ** 0.5
