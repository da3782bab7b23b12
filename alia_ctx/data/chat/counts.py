"""How many conversations were read, and which rows were left out for which reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

EXAMPLES = 5  # rows of each reason that are told; a file has all


@dataclass(frozen=True)
class LeftOutRow:
    """A row that is not used: where it stands, the word it is counted by, a sentence."""

    where: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {' '.join(self.detail.split())}"


@dataclass
class ChatCounts:
    """Sums over rows. `cut` conversations lost `cut_turns` turns because they were too
    long; `spelled` says how often contents spell each special token; `trained_tokens`
    are targets of weight 1; `unshown_reasoning` turns reasoned before they spoke, and
    the template does not show what.
    """

    conversations: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    cut: int = 0
    cut_turns: int = 0
    unshown_reasoning: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    spelled: Counter[str] = field(default_factory=Counter)

    def count(self, trained: np.ndarray, cut_turns: int) -> None:
        """Add the tokens of one conversation; the first one is nobody's target."""
        self.tokens += trained.size
        self.trained_tokens += int(trained[1:].sum())
        self.cut += bool(cut_turns)
        self.cut_turns += cut_turns

    def add(self, other: ChatCounts) -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        # asdict would make a Counter of pairs of a Counter.
        return {
            name: dict(value) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ChatCounts:
        counters = {name: Counter(value[name]) for name in ("left_out", "spelled")}
        return cls(**{**value, **counters})

    def lines(self, examples: list[LeftOutRow]) -> list[str]:
        """What a person should read: rows by reason with the first few of each, what was
        cut, special tokens that are spelled.
        """
        lines = []
        if self.left_out:
            told = ", ".join(f"{n:,} {why}" for why, n in self.left_out.most_common())
            lines.append(f"{self.left_out.total():,} rows left out: {told}")
            lines += [f"  {example}" for example in examples]
        if self.cut:
            lines.append(
                f"{self.cut:,} conversations were too long and lost {self.cut_turns:,} "
                "turns from their ends"
            )
        if self.unshown_reasoning:
            lines.append(
                f"{self.unshown_reasoning:,} turns reasoned before they spoke "
                "(reasoning_content, or <think> among their words); the template does not "
                "show it, and it is not trained"
            )
        if self.spelled:
            most = ", ".join(f"{t!r} {n:,}" for t, n in self.spelled.most_common(10))
            lines.append(f"special tokens spelled in contents: {most}")
        return lines


class FirstOfEach:
    """Keeps the first few rows of each reason."""

    def __init__(self, most: int = EXAMPLES) -> None:
        self.most = most
        self.rows: list[LeftOutRow] = []
        self._seen: Counter[str] = Counter()

    def add(self, row: LeftOutRow) -> None:
        self._seen[row.reason] += 1
        if self._seen[row.reason] <= self.most:
            self.rows.append(row)
