"""Why something is no function that conversations are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """`why` is the same for all that have this fault, so that they can be counted; `detail`
    is what is so of this one.
    """

    why: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.why} ({self.detail})" if self.detail else self.why


def counted(left_out: Mapping[str, Reason]) -> Iterator[str]:
    """A line for each reason, the most frequent first: how often, and one example."""
    by_reason: dict[str, list[str]] = {}
    for where, reason in left_out.items():
        detail = f" ({reason.detail})" if reason.detail else ""
        by_reason.setdefault(reason.why, []).append(f"{where}{detail}")
    for why, cases in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        such = ", as" if len(cases) > 1 else ":"
        yield f"{len(cases):,} left out, {why}{such} {cases[0]}"
