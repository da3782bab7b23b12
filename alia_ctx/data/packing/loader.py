"""Rows read ahead of their use, only the ranges of positions that this rank trains on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from alia_ctx.data.packing.plan import PackPlan
from alia_ctx.data.packing.row import PackedRow


@dataclass(frozen=True)
class LoadedRow:
    """A row with the tokens and targets, int64, of the asked ranges of positions, one
    range after another.
    """

    row: PackedRow
    tokens: np.ndarray
    targets: np.ndarray


def prefetch_rows(
    plan: PackPlan,
    indices: Iterable[int],
    ranges: Sequence[tuple[int, int]],
    depth: int = 2,
) -> Iterator[LoadedRow]:
    """Yield rows in the given order while a thread reads up to `depth` rows ahead.

    ranges: half-open ranges of row positions, as layout.zigzag_chunks gives them for a
    CP rank. A thread suffices: the copying is numpy's, which releases the interpreter
    for it. depth=0 reads without a thread.
    """
    if depth < 1:
        yield from (_load_row(plan, index, ranges) for index in indices)
        return
    with ThreadPoolExecutor(1, "prefetch") as pool:
        ahead: deque = deque()
        for index in indices:
            ahead.append(pool.submit(_load_row, plan, index, ranges))
            if len(ahead) > depth:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _load_row(
    plan: PackPlan, index: int, ranges: Sequence[tuple[int, int]]
) -> LoadedRow:
    row = plan.row(index)
    parts = [row.tokens_and_targets(start, stop) for start, stop in ranges]
    tokens, targets = (
        np.concatenate(each) if len(parts) > 1 else each[0]
        for each in zip(*parts, strict=True)
    )
    return LoadedRow(row, tokens, targets)
