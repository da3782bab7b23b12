"""Functions that exist nowhere, of bare types: seeded names and parameters, as many as are
asked for.

A model that calls them can only have copied them from the tools and the request.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

INVENTED_VERBS = (
    "add", "book", "build", "check", "close", "count", "find", "get", "hide", "join",
    "keep", "list", "load", "make", "move", "open", "pick", "plan", "read", "save",
    "send", "set", "show", "sort", "start", "stop", "take", "turn", "write",
)  # fmt: skip
# Parameters whose names have values of their own in `values`, and some that have none.
_TEXTS = (
    "city", "date", "email", "file", "language", "owner", "place", "query", "title",
    "user", "code", "color", "kind", "label", "part", "style", "topic",
)  # fmt: skip
_NUMBERS = (
    "age",
    "count",
    "depth",
    "height",
    "level",
    "limit",
    "size",
    "speed",
    "year",
)
_TRUTHS = ("fast", "force", "quiet", "strict")
_STARTS, _VOWELS, _ENDS = "bcdfghjklmnprstvwz", "aeiou", ("", "l", "n", "r", "s", "x")


def simple_functions(count: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, description and parameters of function 0, 1, ...; a smaller count gives the
    first of a larger one.
    """
    names: set[str] = set()
    number = 0
    while len(names) < count:
        draw = random.Random(f"invented {number}")
        number += 1
        verb, thing = draw.choice(INVENTED_VERBS), invented_word(draw)
        name = (
            f"{verb}_{thing}"
            if draw.random() < 0.7
            else f"{thing}_{invented_word(draw)}"
        )
        if name in names:
            continue
        names.add(name)
        yield name, f"{name.replace('_', ' ').capitalize()}.", _parameters(draw)


def invented_name(draw: random.Random) -> str:
    """Of a function or a parameter."""
    chance = draw.random()
    if chance < 0.5:
        return invented_word(draw)
    if chance < 0.8:
        return f"{draw.choice(INVENTED_VERBS)}_{invented_word(draw)}"
    return draw.choice(_TEXTS + _NUMBERS)


def invented_word(draw: random.Random) -> str:
    """Two or three syllables."""
    return "".join(
        draw.choice(_STARTS) + draw.choice(_VOWELS) + draw.choice(_ENDS)
        for _ in range(draw.randint(2, 3))
    )


def _parameters(draw: random.Random) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for _ in range(draw.randint(1, 3)):
        kind = draw.choice(("string", "string", "integer", "boolean", "invented"))
        if kind == "invented":
            name, kind = invented_word(draw), draw.choice(("string", "integer"))
        else:
            known = {"string": _TEXTS, "integer": _NUMBERS, "boolean": _TRUTHS}
            name = draw.choice(known[kind])
        properties[name] = {"type": kind}
    return {"type": "object", "properties": properties, "required": [*properties]}
