"""Where the wall time of a stage goes, by the lines of its log.

`seconds` of a line is an update from its rows to its numbers. What training waited for a
save (`save_seconds`), and the evaluation after it (`evaluate_seconds`), lie beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

PARTS = ("compute", "communication", "step", "data", "save", "evaluate")
_BESIDE = ("save_seconds", "evaluate_seconds")
_RECENT = 64  # updates that averages are taken over

Lines = Sequence[Mapping[str, Any]]


def is_number(value: object) -> bool:
    """Whether it is finite, and no truth value."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and math.isfinite(value)  # type: ignore[arg-type]


def wall_seconds(lines: Lines) -> float:
    """Seconds that these updates took with all that followed from them."""
    return sum(_number(line, name) for line in lines for name in ("seconds", *_BESIDE))


def shares_of_time(lines: Lines) -> dict[str, float]:
    """The share of the wall time of these updates that each of `PARTS` took, and `other`:
    in all 1. Empty where nothing was timed.
    """
    parts = {
        name: sum(_number(line, f"{name}_seconds") for line in lines) for name in PARTS
    }
    # Parts are timed one by one, and may come to a little more than the whole.
    total = max(wall_seconds(lines), sum(parts.values()))
    shares = {name: part / total for name, part in parts.items() if total}
    if shares:
        shares["other"] = max(0.0, 1 - sum(shares.values()))
    return shares


def update_seconds(lines: Lines) -> float | None:
    """The median of the last updates, without what follows them; None before there is one."""
    recent = [v for line in lines if (v := _number(line, "seconds"))][-_RECENT:]
    return median(recent) if recent else None


def seconds_for(updates: int, lines: Lines) -> float | None:
    """Seconds that so many more updates may take: each the median of the last ones, and
    what saves and evaluations took an update so far; None before there is one.
    """
    each = update_seconds(lines)
    if each is None:
        return None
    beside = sum(_number(line, name) for line in lines for name in _BESIDE)
    return max(0, updates) * (each + beside / len(lines))


def _number(line: Mapping[str, Any], name: str) -> float:
    value = line.get(name)
    return float(value) if is_number(value) else 0.0  # type: ignore[arg-type]
