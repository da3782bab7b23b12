"""A checksum of tensors' values that does not depend on how writers cut them in boxes.

Each value, as the integer that its bits are, is multiplied by an odd number that follows
from its tensor's name and its place in the tensor, and all products are added modulo
2^64. So the sums of several writers add up to one number, whoever wrote which box, and a
single value that changes always changes it. Zeros add nothing: rows that tensor
parallelism pads a table with leave it as it is. It tells weights apart; bytes that were
damaged on disk are the files' checksums' to find.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    from torch import Tensor

CONTENT = "content"  # in a manifest's entry of a file that holds tensors
_DIGITS = 16
_VALUES_AT_ONCE = 1 << 18  # stay in the processor's cache
_UNSIGNED = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint32"}


def box_sum(key: str, offsets: tuple[int, ...], values: Tensor) -> int:
    """What the box of tensor `key` that starts at `offsets` adds to the content: contiguous
    `values` on the CPU, with an axis for each offset. A number below 2^64.
    """
    import torch  # here, as who only reads what manifests state needs none

    if not values.numel():
        return 0
    unsigned = getattr(torch, _UNSIGNED[values.itemsize])
    bits = values.reshape(values.shape or (1,)).view(unsigned).numpy()
    start = offsets or (0,)
    if values.itemsize == 8:  # two halves, so that a sign is no multiple of 2^63
        start = (*start[:-1], 2 * start[-1])
    *lead, last = (
        _odd_numbers(axis, first, count)
        for axis, (first, count) in enumerate(zip(start, bits.shape, strict=True))
    )
    rows = bits.reshape(-1, bits.shape[-1])
    factors = np.full(1, xxhash.xxh3_64_intdigest(key.encode()) | 1, np.uint64)
    for numbers in lead:
        factors = np.multiply.outer(factors, numbers).reshape(-1)
    total, step = 0, max(1, _VALUES_AT_ONCE // rows.shape[1])
    for first in range(0, len(rows), step):
        # Without a copy of the values in 64 bits, which would take twice as long.
        sums = np.einsum(
            "rv,v->r",
            rows[first : first + step],
            last,
            dtype=np.uint64,
            casting="unsafe",
        )
        total += int(np.sum(sums * factors[first : first + step], dtype=np.uint64))
    return total % 2**64


def content_entry(total: int) -> str:
    """The sum of a file's boxes as its entry in a manifest has it."""
    return f"{total % 2**64:0{_DIGITS}x}"


def content_of(entries: Iterable[Mapping[str, Any]]) -> str | None:
    """The content of all files that hold tensors, whose entries these are; None where one
    does not state it, as those of older releases.
    """
    parts = [entry.get(CONTENT) for entry in entries]
    if not parts or None in parts:
        return None
    return content_entry(sum(int(str(part), 16) for part in parts))


def _odd_numbers(axis: int, first: int, count: int) -> np.ndarray:
    """For the places [first, first + count) of an axis: SplitMix64 (Steele, Lea and Flood
    2014) of place and axis, made odd; uint64 [count].
    """
    with np.errstate(over="ignore"):
        numbers = np.arange(first, first + count, dtype=np.uint64)
        numbers = (numbers + np.uint64(1 + (axis << 48))) * np.uint64(
            0x9E3779B97F4A7C15
        )
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
        return (numbers ^ (numbers >> np.uint64(31))) | np.uint64(1)
