"""Whether a tokenizer keeps apart the words that a sample tells and asks for."""

from __future__ import annotations

from collections.abc import Iterator

from alia_ctx.evaluation.retrieval.haystack import Encode

_LOWER, _DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"


def is_told_apart(encode: Encode, text: str) -> bool:
    """Whether the ids of `text` are no longer those where one of its letters or digits is
    another. An answer that becomes <unk>, or nothing, is right of whoever says <unk>, or
    nothing: it shows no reading.
    """
    own = list(encode(" " + text))
    return all(list(encode(" " + other)) != own for other in _neighbours(text))


def _neighbours(text: str) -> Iterator[str]:
    """`text` with each of its letters and digits replaced by the next one."""
    for at, letter in enumerate(text):
        if letter.isalnum():
            yield text[:at] + _next(letter) + text[at + 1 :]


def _next(letter: str) -> str:
    for letters in (_LOWER, _LOWER.upper(), _DIGITS):
        if letter in letters:
            return letters[(letters.index(letter) + 1) % len(letters)]
    # Tokenizers that strip accents read the plain letter: z is none of these.
    return "z"
