"""Standard errors: whether one is known at all, and how it is written."""

from __future__ import annotations

import math

# Losses are in fp32: a spread so far below their rounding is none.
_LEAST_ERROR = 1e-9


def known_error(error: float | None) -> float | None:
    """A standard error, or None where none is known: of fewer than two documents (None,
    nan), or of several that have no spread at all, as copies of one have.
    """
    if error is None or not math.isfinite(error) or error < _LEAST_ERROR:
        return None
    return error


def with_error(value: str, error: float | None, sign: str = "+-") -> str:
    """`VALUE +- 0.0030`, or that the error is not known."""
    known = known_error(error)
    if known is None:
        return f"{value} (error not known)"
    return f"{value} {sign} {known:.4f}"
