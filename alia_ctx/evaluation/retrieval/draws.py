"""Keys, values and names of retrieval tasks, drawn so that none comes twice in a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alia_ctx.evaluation.retrieval.languages import Language

_LETTERS = np.array(list("bcdfghjklmnpqrstvwxz"))
_VOWELS = np.array(list("aeiou"))


class Draws:
    """What is drawn for one row, by `random` from the words of a language."""

    def __init__(self, random: np.random.Generator, words: Language) -> None:
        self._random, self._words = random, words
        self._used: set[str] = set()
        self._codes: dict[int, int] = {}  # how many were drawn, by digits

    def fresh(self, draw: Callable[[], str]) -> str:
        while (text := draw()) in self._used:
            pass
        self._used.add(text)
        return text

    def uuid(self) -> str:
        digits = "".join(f"{byte:02x}" for byte in self._random.integers(0, 256, 16))
        return "-".join(
            digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
        )

    def pair(self) -> str:
        pick = self._random.choice
        name = f"{pick(self._words.adjectives)}-{pick(self._words.nouns)}"
        # 1,024 pairs; past half of them a number keeps keys apart, as a long haystack
        # of needles needs.
        return (
            name
            if len(self._used) < 512
            else f"{name}-{self._random.integers(10, 10_000_000)}"
        )

    def code(self, digits: int) -> str:
        """A number of so many digits; past half of all that there are, of one more."""
        while self._codes.get(digits, 0) >= 9 * 10 ** (digits - 1) // 2:
            digits += 1
        self._codes[digits] = self._codes.get(digits, 0) + 1
        low = 10 ** (digits - 1)
        return self.fresh(lambda: str(self._random.integers(low, 10 * low)))

    def coded(self) -> str:
        """A word that no language has: consonants and vowels in turn, six letters."""
        pick = self._random.choice
        return "".join(
            str(pick(_LETTERS)) + str(pick(_VOWELS)) for _ in range(3)
        ).upper()

    def person(self) -> str:
        return self.fresh(
            lambda: f"{self.coded().capitalize()} {self.coded().capitalize()}"
        )

    def number(self) -> str:
        return str(self._random.integers(1000, 10_000))
