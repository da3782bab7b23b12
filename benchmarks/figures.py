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


def first_or_odd(values: Sequence[float]) -> float:
    """The first, or, where any is no finite number, the first of those."""
    return values[0] if (odd := first_odd(values)) is None else odd


def largest(values: Sequence[float]) -> float:
    """The largest, or NaN where one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def differences(own: list[Tensor], others: list[Tensor] | None) -> list[float] | None:
    """By how much each is off, of the other's norm; None where there is nothing to compare
    with.
    """
    if others is None:
        return None
    return [_off(a, b) for a, b in zip(own, others, strict=True)]


def _off(own: Tensor, other: Tensor) -> float:
    off = (own - other).norm()
    # Both zero: documents of one token have no gradients of queries and keys.
    return float(off / other.norm()) if off != 0 else 0.0


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
