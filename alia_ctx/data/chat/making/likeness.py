"""What is the same to a person who asks: values, and functions that could be meant."""

from __future__ import annotations

import functools
from typing import Any

from alia_ctx.data.chat.making.functions import Function
from alia_ctx.data.chat.making.value_words import spoken_name


def is_same(one: Any, other: Any) -> bool:
    """As JSON: 1 is no true, and no 1.0 either."""
    return type(one) is type(other) and bool(one == other)


def is_default(value: Any, schema: Any) -> bool:
    """1 is no true, as it is in Python."""
    if not isinstance(schema, dict) or "default" not in schema:
        return False
    default = schema["default"]
    return value == default and isinstance(value, bool) == isinstance(default, bool)


def serves(other: Function, function: Function) -> bool:
    """Whether a request for `function` could mean `other`: both say the same of
    themselves, both do something with the same thing, or all words of one name are in
    the other's.
    """
    ours, theirs = _words_of_name(function.name), _words_of_name(other.name)
    return (
        ours <= theirs
        or theirs <= ours
        or _as_said(function.description) == _as_said(other.description)
        or (function.subject is not None and function.subject == other.subject)
    )


# Both are asked of each function for each conversation: 95% of the time without a cache.
@functools.cache
def _words_of_name(name: str) -> frozenset[str]:
    return frozenset(spoken_name(name).lower().split())


@functools.cache
def _as_said(description: str) -> str:
    return description.strip().lower()
