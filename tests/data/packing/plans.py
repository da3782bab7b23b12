"""Small stores and plans that the packing tests share."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

from alia_ctx.data.packing import PackPlan
from alia_ctx.data.tokens import TokenStore, write_store

LENGTHS = [5, 9, 30, 2, 17] * 8


def make_store(folder: Path, lengths: list[int], first: int = 0) -> TokenStore:
    """A store in which each token is a number of its own, from `first`."""
    ends = np.cumsum([first, *lengths])
    return write_store(folder, [np.arange(a, b) for a, b in pairwise(ends)], 1 << 20)


def tokens_of(plan: PackPlan, rows: range | None = None) -> Counter[int]:
    """How often each token is in the plan's rows."""
    counts: Counter[int] = Counter()
    for index in rows or range(len(plan)):
        row = plan.row(index)
        counts.update(row.tokens(0, row.real_tokens).tolist())
    return counts
