"""Sampling of answers, each from random numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alia_ctx.files import checksum


class GumbelNoise:
    """Sampling as a greedy choice: the maximum of logits / temperature plus Gumbel noise is
    a draw from the softmax. Each row has a generator of its own, by `seed` and its name.
    """

    def __init__(self, temperature: float, seed: int, names: Sequence[str]) -> None:
        import torch

        self._temperature = temperature
        self._generators = [
            torch.Generator().manual_seed(
                int(checksum(f"{seed} {name}".encode())[:15], 16)
            )
            for name in names
        ]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        size = scores.shape[-1]
        uniform = torch.stack(
            [
                torch.rand(size, generator=g, dtype=torch.float64)
                for g in self._generators
            ]
        )
        noise = -torch.log(-torch.log(uniform.clamp_(1e-300, 1 - 1e-16)))
        noise, scores = noise.to(scores.device).float(), scores.float()
        # Multiplied by a small temperature, not divided: logits would be infinite, all alike.
        small = min(self._temperature, 1.0)
        return scores / max(self._temperature, 1.0) + small * noise
