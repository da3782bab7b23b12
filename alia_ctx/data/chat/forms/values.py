"""Several values in one text, as models write calls one after another."""

from __future__ import annotations

import re
from typing import Any

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms.calls import literal
from alia_ctx.data.chat.json_text import parse_at

_BETWEEN = re.compile(r"[\s;,]*")


def values_of(text: str) -> list[Any]:
    """A JSON value or a literal of Python, of an array its values; or several objects, as
    Llama 3 writes calls, with `;` or blanks between. RowError for what is neither.
    """
    try:
        value = literal(text)
        # Objects with commas between are a tuple to Python.
        return [*value] if isinstance(value, (list, tuple)) else [value]
    except RowError:
        values, place = [], _end_of_blank(text, 0)
        try:
            while place < len(text):
                value, end = parse_at(text, place)
                values.append(value)
                place = _end_of_blank(text, end)
        except ValueError:
            values = []
        if len(values) < 2:
            raise
        return values


def _end_of_blank(text: str, start: int) -> int:
    match = _BETWEEN.match(text, start)
    return match.end() if match else start
