"""What an examination finds: good, weak or broken, with the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["good", "weak", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at on one rank: `weak` works, and worse than it could;
    with what is `broken` a run fails. `where` says whose it is, nothing where it is of
    all.
    """

    name: str
    verdict: Verdict
    words: str
    remedy: str = ""
    where: str = ""

    def __str__(self) -> str:
        where = f" [{self.where}]" if self.where else ""
        remedy = f"; {self.remedy}" if self.remedy and self.verdict != "good" else ""
        return f"{self.verdict:6} {self.name}: {self.words}{remedy}{where}"


def good(name: str, words: str) -> Finding:
    return Finding(name, "good", words)


def weak(name: str, words: str, remedy: str) -> Finding:
    return Finding(name, "weak", words, remedy)


def broken(name: str, words: str, remedy: str) -> Finding:
    return Finding(name, "broken", words, remedy)


def merged(by_rank: Sequence[tuple[str, Sequence[Finding]]]) -> list[Finding]:
    """The findings of all ranks (name of the rank, its findings): what several have alike
    is one line that says whose it is, unless it is of all.
    """
    holders: dict[Finding, list[str]] = {}
    for rank, findings in by_rank:
        for finding in findings:
            holders.setdefault(finding, []).append(rank)
    order = list(dict.fromkeys(f.name for _, findings in by_rank for f in findings))
    lines = []
    for finding, ranks in holders.items():
        named = ", ".join(ranks[:4]) + (
            f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
        )
        is_of_all = len(ranks) == len(by_rank) or finding.where
        where = finding.where if is_of_all else named
        lines.append(
            Finding(finding.name, finding.verdict, finding.words, finding.remedy, where)
        )
    return sorted(lines, key=lambda finding: order.index(finding.name))
