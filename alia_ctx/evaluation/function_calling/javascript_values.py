"""Values that a model writes as JavaScript source, as BFCL reads them.

The same bargain as in `java_values.py`: what has not the form of its type stays text,
and elements are cut at every comma (`js_type_converter` of `bfcl-eval`).
"""

from __future__ import annotations

import re
from typing import Any

from alia_ctx.evaluation.function_calling.java_values import number, python_number

TYPES: dict[str, type] = {
    "String": str,
    "any": str,
    "integer": int,
    "Bigint": int,
    "float": float,
    "Boolean": bool,
    "dict": dict,
    "array": list,
}
_NUMBERS: dict[str, tuple[re.Pattern[str], type]] = {
    "integer": (re.compile(r"^(-?\d+)$"), int),
    "float": (re.compile(r"^(-?\d+(?:\.\d+)?)$"), float),
    "Bigint": (re.compile(r"^(-?\d+)n$"), int),
}
_TRUTHS = {"true": True, "false": False}
# What rows stand in, up to the bracket of the first, and what closes it.
_OF_ROWS = ((re.compile(r"\[\s*\["), "]"), (re.compile(r"new\s+Array\(\s*\["), ")"))
_INSIDE_ROW = re.compile(r"\[(.*?)\]")
_ARRAY = re.compile(r"\[(.*?)\]|new\s+Array\((.*?)\)")
_OBJECT = re.compile(r"\{(.*?)\}")
_PAIR = re.compile(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)")


def javascript_value(text: str, kind: str, items: str | None = None) -> Any:
    """The value of a JavaScript expression for a parameter of type `kind`; for arrays
    `items` is the type of their elements, None where it is not said.
    """
    if kind == "String":
        return text[1:-1] if _is_quoted(text) else text
    if kind in _NUMBERS:
        return number(text, *_NUMBERS[kind])
    if kind == "Boolean":
        return _TRUTHS.get(text, text)
    if kind == "array":
        return _array(text.strip(), items)
    return _object(text.strip()) if kind == "dict" else text


def _is_quoted(text: str) -> bool:
    return any(text.startswith(q) and text.endswith(q) for q in ('"', "'"))


def _array(code: str, items: str | None) -> Any:
    if matrix := _matrix(code):
        rows = [row.strip() for row in _INSIDE_ROW.findall(matrix)]
        rows[0] = rows[0].removeprefix("[")  # the outer bracket of a literal
        return [[guessed_value(part) for part in row.split(",")] for row in rows]
    array = _ARRAY.match(code)
    if array is None:
        return code
    inside = (array[1] if array[1] is not None else array[2]).strip()
    elements = [part.strip() for part in inside.split(",")] if inside else []
    if items is None:
        return [guessed_value(element) for element in elements]
    return [javascript_value(element, items) for element in elements]


def _matrix(code: str) -> str:
    """The array of rows that a text begins with; empty where it begins with none."""
    for opening, closing in _OF_ROWS:
        if head := opening.match(code):
            return code[: _rows_end(code, head.end(), closing)]
    return ""


def _rows_end(code: str, start: int, closing: str) -> int:
    """Where an array of rows ends, the first row of which begins at `start`, behind its
    bracket; 0 where it has no end.

    What `.*?\\]\\s*(?:,\\s*\\[.*?\\]\\s*)*` and `closing` match. As a pattern that takes
    time in 2^n for n rows that are not closed: each `]` may end any of them.
    """
    solid = [*range(len(code) + 2)]  # place -> of the next letter that is no blank
    ends = [0] * (len(code) + 2)  # where a row begins -> where all ends
    end = 0  # with a row that ends at the nearest `]` from here with which there is one
    for place in range(len(code) - 1, start - 1, -1):
        letter = code[place]
        if letter.isspace():
            solid[place] = solid[place + 1]
        if letter == "\n":  # no row goes on behind it
            end = 0
        elif letter == "]":
            after = solid[place + 1]
            opening = solid[after + 1]
            if code[after : after + 1] == closing:
                end = after + 1
            elif code[after : after + 1] == "," and code[opening : opening + 1] == "[":
                end = ends[opening + 1] or end
        ends[place] = end
    return ends[start]


def _object(code: str) -> Any:
    if code == "{}":
        return {}
    body = _OBJECT.match(code)
    if body is None:
        return code
    return {
        key.strip().strip("'\""): _member(value.strip())
        for key, value in _PAIR.findall(body[1])
    }


def _member(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _array(text, None)
    if text.startswith("{") and text.endswith("}"):
        return _object(text)
    return guessed_value(text.strip("'\""))


def guessed_value(text: str) -> Any:
    """The value of an expression whose type is not said."""
    text = text.strip()
    if text in _TRUTHS:
        return _TRUTHS[text]
    return text[1:-1] if _is_quoted(text) else python_number(text)
