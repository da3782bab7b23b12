"""How many documents were read, and what was left out for which reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

REASONS = (
    "empty",
    "invalid_utf8",
    "invalid_json",
    "missing_text",
    "too_long",
    "special_token",
)
_EXAMPLES = 5


@dataclass(frozen=True)
class LeftOut:
    """A document that is not used: the reason, one of REASONS, and where it stood."""

    reason: str
    where: str


@dataclass
class DocumentCounts:
    """How many documents were read, and how many were left out for which reason.

    `examples` names the first few of each reason; `special_tokens` says how often each
    special token of the tokenizer was spelled in the text.
    """

    documents: int = 0
    empty: int = 0
    invalid_utf8: int = 0
    invalid_json: int = 0
    missing_text: int = 0
    too_long: int = 0
    special_token: int = 0
    examples: list[str] = field(default_factory=list)
    special_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        return sum(getattr(self, reason) for reason in REASONS)

    def reasons(self) -> str:
        """`3 empty, 1 too_long`: what was left out, or `nothing`."""
        counts = {reason: getattr(self, reason) for reason in REASONS}
        told = [f"{number:,} {reason}" for reason, number in counts.items() if number]
        return ", ".join(told) or "nothing"

    def leave_out(self, reason: str, where: str) -> None:
        """Count one document as left out for `reason`, one of REASONS."""
        number = getattr(self, reason) + 1
        setattr(self, reason, number)
        if number <= _EXAMPLES:
            self.examples.append(f"{reason}: {where}")

    def add_spelled(self, tokens: Mapping[str, int]) -> None:
        """Add how often a text spells which special tokens."""
        for token, number in tokens.items():
            self.special_tokens[token] = self.special_tokens.get(token, 0) + number

    def add(self, other: DocumentCounts) -> None:
        """Add the counts of another slice; the first few examples of each reason stay."""
        room = {reason: _EXAMPLES - getattr(self, reason) for reason in REASONS}
        for name in ("documents", *REASONS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for example in other.examples:
            reason = example.split(":", 1)[0]
            if room[reason] > 0:
                room[reason] -= 1
                self.examples.append(example)
        self.add_spelled(other.special_tokens)
