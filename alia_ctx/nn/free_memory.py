"""Memory that a comparison must not find results in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def fill_free_memory(
    like: Sequence[Tensor], value: float = math.nan, copies: int = 4
) -> None:
    """Fill with `value` what results and fp32 sums of the sizes of `like` are likely to be
    placed in: torch hands out again what was freed, as it was left.

    A program that leaves a result unwritten, as a build that lacks a part does, may else
    find the right numbers there, left by the one before it.
    """
    free = [
        torch.full(part.shape, value, dtype=dtype, device=part.device)
        for part in like
        for dtype in {part.dtype, torch.float32}
        for _ in range(copies)
    ]
    del free
