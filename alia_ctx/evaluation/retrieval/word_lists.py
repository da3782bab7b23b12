"""Lists of words, each so many times, that fit whole into so many tokens: what stands in
a list is chosen first and shuffled then, so that its counts are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from alia_ctx.errors import DataError

Line = Callable[[str], np.ndarray]  # a text -> ids of it as a line of its own
Draw = Callable[[], str]

FEWEST = 12  # entries by which the counts of frequent words are made
_RANKED = 4  # the three words that are asked for, and one that they hide among
_PROBES = 8  # numbers of as many digits whose lines are measured


def frequent_counts(total: int, alpha: float) -> NDArray[np.int64]:
    """How often the words of a list of about `total` entries come, the most frequent
    first: as rank ** -alpha, rounded, no word less than once, and each of the first
    three more often than the next, so that there is one answer to which they are.
    """
    shares = np.arange(1, 1 + max(_RANKED, total // 8), dtype=np.float64) ** -alpha
    counts = np.maximum(1, np.round(shares / shares.sum() * total)).astype(np.int64)
    for rank in reversed(range(_RANKED - 1)):
        counts[rank] = max(counts[rank], counts[rank + 1] + 1)
    return counts


def least_of_frequent(line: Line, words: Sequence[str], alpha: float) -> int:
    """Tokens of the shortest list by `frequent_counts`, of the four `words`."""
    return int(frequent_counts(FEWEST, alpha) @ [len(line(word)) for word in words])


def frequent_entries(
    line: Line, words: Sequence[str], draw: Draw, alpha: float, room: int
) -> list[str]:
    """Entries that come to `room` tokens at most, as many as fit: `words` are the most
    frequent, from the first down, the others are drawn. The room is not below
    `least_of_frequent`.
    """
    words = list(words)
    sizes = [len(line(word)) for word in words]
    total = max(FEWEST, room // min(sizes))
    while True:
        counts = frequent_counts(total, alpha)
        while len(words) < len(counts):
            words.append(draw())
            sizes.append(len(line(words[-1])))
        used = int(counts @ sizes[: len(counts)])
        if used <= room or total <= FEWEST:
            break
        total = max(FEWEST, total - max(1, (used - room) // max(sizes)))
    entries = [
        word for word, count in zip(words, counts, strict=False) for _ in range(count)
    ]
    while used + len(line(word := draw())) <= room:
        entries.append(word)
        used += len(line(word))
    return entries


class NumberedList:
    """Lines "N. WORD": ten common words `common` times each, all others `uncommon` times."""

    def __init__(
        self, line: Line, words: Sequence[str], common: int, uncommon: int
    ) -> None:
        self._line, self._words = line, list(words)
        self._common, self._uncommon = common, uncommon
        self._numbers: dict[int, float] = {}

    @property
    def least(self) -> int:
        """Tokens of a list of which the common words are three quarters."""
        count = self._common * len(self._words)
        own = self._common * sum(map(self._size, self._words))
        return int(np.ceil((own + self._size_of_numbers(count)) * 4 / 3))

    def _size(self, word: str) -> float:
        """Tokens of an entry but for its number."""
        return len(self._line(f"1. {word}")) - self._size_of_number(1)

    def _size_of_number(self, digits: int) -> float:
        """Tokens that numbers of so many digits take, on average: those that a word's
        line has more than the word alone.
        """
        if digits not in self._numbers:
            word = self._words[0]
            low = 10 ** (digits - 1)
            numbers = np.linspace(low, 10 * low - 1, _PROBES).astype(int)
            sizes = [len(self._line(f"{number}. {word}")) for number in numbers]
            self._numbers[digits] = float(np.mean(sizes)) - len(self._line(word))
        return self._numbers[digits]

    def _size_of_numbers(self, count: int) -> float:
        """Tokens of the numbers 1 to `count`."""
        size, digits = 0.0, 1
        while (low := 10 ** (digits - 1)) <= count:
            in_list = min(count, 10 * low - 1) - low + 1
            size += in_list * self._size_of_number(digits)
            digits += 1
        return size

    def lines(
        self, draw: Draw, random: np.random.Generator, room: int
    ) -> list[np.ndarray]:
        """Lines that come to `room` tokens at most; the common words appear in their
        order. DataError where the others do not fit beside them.
        """
        others = self._others(draw, room)
        while others:
            lines = self._shuffled(others, random)
            excess = sum(map(len, lines)) - room
            if excess <= 0:
                return lines
            # What a tokenizer makes of a line is more than the sum of its parts.
            longest = self._uncommon * max(map(len, lines))
            del others[-max(1, excess // longest) :]
        raise DataError(f"{room} tokens are too few to hide the common words in")

    def _others(self, draw: Draw, room: int) -> list[str]:
        """Uncommon words for which there is room beside the common ones, by estimate."""
        used = self._common * sum(map(self._size, self._words))
        count = self._common * len(self._words)
        others: list[str] = []
        while True:
            word = draw()
            used += self._uncommon * self._size(word)
            count += self._uncommon
            if used + self._size_of_numbers(count) > room:
                return others
            others.append(word)

    def _shuffled(
        self, others: Sequence[str], random: np.random.Generator
    ) -> list[np.ndarray]:
        entries = [word for word in self._words for _ in range(self._common)]
        entries += [word for word in others for _ in range(self._uncommon)]
        shuffled = [entries[i] for i in random.permutation(len(entries))]
        common = set(self._words)
        met = [word for word in dict.fromkeys(shuffled) if word in common]
        names = dict(zip(met, self._words, strict=True))
        return [
            self._line(f"{number}. {names.get(word, word)}")
            for number, word in enumerate(shuffled, 1)
        ]
