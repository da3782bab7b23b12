"""How a plan names the rows of an earlier plan that it continues.

Plans are given as `Statement.plans`: one, and those that it began as.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def named_rows(plans: Sequence[Mapping[str, Any]], rows: int) -> list[Any]:
    """What names the first `rows` rows of `plans`: the fingerprint of the shortest that
    has them, and their number where that one has more. Rows that were added to a plan
    and not trained on so change nothing.
    """
    longest = max(map(_rows, plans))
    rows = min(rows, longest)
    plan = min((p for p in plans if _rows(p) >= rows), key=_rows)
    return [plan["fingerprint"], *([rows] if rows < _rows(plan) else [])]


def rows_as_named(
    plans: Sequence[Mapping[str, Any]], name: Sequence[Any]
) -> int | None:
    """The number of rows that `named_rows` has named so; None where it is of none of
    `plans`.
    """
    fingerprint, *rows = name
    for plan in plans:
        if plan["fingerprint"] == fingerprint:
            return int(rows[0]) if rows else _rows(plan)
    return None


def seen_in_words(seen: Sequence[Sequence[Any]] | None) -> str:
    """The stages, and their plans, in a plan's `seen`: (stage, *`named_rows`) of each."""
    stages = [
        f"{stage} (plan {fingerprint[:8]}"
        + "".join(f", its first {count:,} rows" for count in rows)
        + ")"
        for stage, fingerprint, *rows in seen or []
    ]
    return ", ".join(stages) or "no stage"


def _rows(plan: Mapping[str, Any]) -> int:
    return int(plan["entries"]["row_pairs"])
