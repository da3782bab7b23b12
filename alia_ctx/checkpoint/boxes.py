"""Flat ranges of a row-major tensor as boxes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets, sizes


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Offsets and sizes of the boxes of a tensor of `shape` that are its values [start,
    stop) in row-major order.

    In that order too, and at most 2 * len(shape) - 1 of them: the rest of a row, whole
    rows, the beginning of a row.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield (start,) * len(shape), (stop - start,) * len(shape)
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner  # whole rows, where first < last
    if first > last:  # all within one row
        yield from _within(shape, last, start, stop)
        return
    yield from _within(shape, first - 1, start, first * inner)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _within(shape, last, last * inner, stop)


def _within(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Box]:
    before = row * math.prod(shape[1:])
    for offsets, sizes in boxes(shape[1:], start - before, stop - before):
        yield (row, *offsets), (1, *sizes)
