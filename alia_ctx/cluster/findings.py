"""What an examination finds: good, weak or broken, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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


def listed(names: Iterable[str], most: int = 4) -> str:
    """Names as a person reads them, the first of many."""
    names = [*names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def merged(by_rank: Sequence[tuple[str, Sequence[Finding]]]) -> list[Finding]:
    """The findings of all ranks (name of the rank, its findings): a line for all that is
    good by one name, with the range of its numbers; of what is not, what several have
    alike is one line. Each says whose it is, unless it is of all.
    """
    groups: dict[Finding, tuple[list[str], list[str]]] = {}
    for rank, findings in by_rank:
        for finding in findings:
            is_good = finding.verdict == "good"
            key = replace(finding, words="") if is_good else finding
            ranks, words = groups.setdefault(key, ([], []))
            ranks.append(rank)
            words.append(finding.words)
    order = list(dict.fromkeys(f.name for _, findings in by_rank for f in findings))
    lines = []
    for finding, (ranks, words) in groups.items():
        is_of_all = len({*ranks}) == len(by_rank) or finding.where
        where = finding.where if is_of_all else listed(dict.fromkeys(ranks))
        lines.append(replace(finding, words=in_one(words), where=where))
    return sorted(lines, key=lambda finding: order.index(finding.name))


_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)*")


def in_one(said: Sequence[str]) -> str:
    """What several have said, in a line: where only numbers differ, from the least to the
    most of each; else each saying once.
    """
    sayings = list(dict.fromkeys(said))
    if len({_NUMBER.sub("#", words) for words in sayings}) > 1:
        return listed(sayings, 3)
    columns = zip(*(_NUMBER.findall(words) for words in sayings), strict=True)
    ranges = iter([_range(numbers) for numbers in columns])
    return _NUMBER.sub(lambda _: next(ranges), sayings[0])


def _range(numbers: Sequence[str]) -> str:
    parts = {n: [int(p) for p in n.replace(",", "").split(".")] for n in numbers}
    is_plain = all(len(part) <= 2 for part in parts.values())
    # Of 1.5 and 1.25 the second is less, of releases 1.5.0 and 1.25.0 the first.
    value = (lambda n: float(n.replace(",", ""))) if is_plain else parts.__getitem__
    least, most = min(numbers, key=value), max(numbers, key=value)
    return least if least == most else f"{least} to {most}"
