"""Lines that hide needles: the user's documents, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from alia_ctx.errors import DataError

Encode = Callable[[str], Sequence[int]]


class Haystack:
    """Lines to hide needles between, as tokens: the user's documents over and over, in a
    seeded order of documents.

    Args:
        texts: documents; each is cut into its lines (long ones into sentences).
        encode: text -> token ids, without special tokens.
    """

    def __init__(self, texts: Iterable[str], encode: Encode) -> None:
        self._documents = [
            [np.asarray(encode(line + "\n"), np.int64) for line in _lines(text)]
            for text in texts
        ]
        # Lines of which a tokenizer makes no id fill nothing.
        self._documents = [
            [line for line in lines if len(line)] for lines in self._documents
        ]
        self._documents = [lines for lines in self._documents if lines]
        if not self._documents:
            raise DataError(
                "the haystack has no text; give documents with at least one line"
            )

    def lines(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Lines of the documents in a random order, for ever."""
        while True:
            for number in generator.permutation(len(self._documents)):
                yield from self._documents[number]


def _lines(text: str, longest: int = 400) -> Iterator[str]:
    """Lines of a text; long ones are cut after sentences."""
    for line in text.splitlines():
        while len(line) > longest:
            cut = line.rfind(". ", 0, longest) + 2
            cut = cut if cut > 1 else longest
            yield line[:cut].rstrip()
            line = line[cut:]
        if line.strip():
            yield line
