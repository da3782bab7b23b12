"""Figures of which one may be NaN or infinite: Python's `max` and `min` leave a NaN out unless
it is the first, and a table would show the wrong result of a kernel as a right one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor


def first_odd(values: Iterable[float]) -> float | None:
    """The first that is no finite number; None where all are."""
    return next((value for value in values if not math.isfinite(value)), None)


def largest(values: Sequence[float]) -> float:
    """The largest, or NaN where one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def differences(own: list[Tensor], others: list[Tensor] | None) -> list[float] | None:
    """By how much each is off, of the other's norm; None where there is nothing to compare
    with.
    """
    if others is None:
        return None
    return [
        # Both zero: documents of one token have no gradients of queries and keys.
        float(off / whole) if (off := (a - b).norm()) != 0 else 0.0
        for a, b in zip(own, others, strict=True)
        for whole in (b.norm(),)
    ]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def differs_by(result: dict[str, Any], key: str) -> str:
    """A table's cell: the largest difference, nan where the result itself is not finite, and
    "-" where it was compared with nothing.
    """
    if not result.get("finite", True):
        return "nan"
    return "-" if result[key] is None else f"{largest(result[key]):.0e}"


def is_finite(result: dict[str, Any], key: str) -> bool:
    """Whether a result that was measured is a number, and so is what it differs by."""
    odd = first_odd(result[key] or ())
    return result.get("finite", True) and odd is None
