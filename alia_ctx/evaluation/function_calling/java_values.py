"""Values that a model writes as Java source, as BFCL reads them.

A parameter of a Java function is a text that holds an expression. What does not have the
form of its type stays text, and is then of the wrong type. Elements of collections are
cut at every comma, inside quotes too: the benchmark does so (`java_type_converter` of
`bfcl-eval`), and a reader that knew better would score other answers as right.
"""

from __future__ import annotations

import re
from typing import Any

TYPES: dict[str, type] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    "boolean": bool,
    **dict.fromkeys(("char", "String", "any"), str),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "Set": set,
}
_REAL = r"(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
_WHOLE = (re.compile(r"^(-?\d+)$"), int)
_LONG = (re.compile(r"^(-?\d+)[lL]$"), int)
_FLOAT = (re.compile(rf"^{_REAL}[fF]$"), float)
_DOUBLE = (re.compile(rf"^{_REAL}$"), float)
_TRUTHS = {"true": True, "false": False}
_NUMBERS: dict[str, tuple[re.Pattern[str], type]] = {
    **dict.fromkeys(("byte", "short", "integer"), _WHOLE),
    "long": _LONG,
    "float": _FLOAT,
    "double": _DOUBLE,
}
_NEW_LIST = r"new\s+ArrayList<\w*>\("
_LIST_OF = re.compile(_NEW_LIST + r"Arrays\.asList\((.+?)\)\)")
_LIST_ADDED = re.compile(_NEW_LIST + r"\)\s*\{\{\s*")
_LIST_EMPTY = re.compile(_NEW_LIST + r"\)")
_ADDED = re.compile(r"add\((.+?)\)")
_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
_NEW_MAP = r"new\s+HashMap<.*?>\s*\(\)"
_MAP_FILLED = re.compile(_NEW_MAP + r"\s*\{", re.DOTALL)
_MAP_EMPTY = re.compile(_NEW_MAP)
_PUT = re.compile(r"put\(\"(.*?)\",\s*(.*?)\)")


def java_value(text: str, kind: str, items: str | None = None) -> Any:
    """The value of a Java expression for a parameter of type `kind`; for collections
    `items` is the type of their elements, None where it is not said.
    """
    if kind in _NUMBERS:
        return number(text, *_NUMBERS[kind])
    if kind == "boolean":
        return _TRUTHS.get(text, text)
    if kind == "ArrayList":
        return _list(text, items)
    if kind == "Array":
        body = _ARRAY.search(text)
        if body is None:
            return text
        elements = [part.strip() for part in body[1].split(",")]
        return [_element(element, items) for element in elements if element]
    return _map(text) if kind == "HashMap" else text


def number(text: str, pattern: re.Pattern[str], convert: type) -> Any:
    """What `pattern` finds, converted; the text where it finds nothing, or what Python
    converts none of: thousands of digits.
    """
    match = pattern.match(text)
    try:
        return convert(match[1]) if match else text
    except ValueError:
        return text


def _element(text: str, items: str | None) -> Any:
    return java_value(text, items) if items else guessed_value(text)


def _list(text: str, items: str | None) -> Any:
    if of := _LIST_OF.search(text):
        parts = of[1].split(",")
    elif (added := _inside(_LIST_ADDED, text, "}}", 1)) is not None:
        parts = _ADDED.findall(added)
    else:
        return [] if _LIST_EMPTY.search(text) else text
    quoted = items in ("char", "String")
    elements = [part.strip() for part in parts]
    return [e[1:-1] if quoted else _element(e, items) for e in elements]


def _inside(
    opening: re.Pattern[str], text: str, closing: str, least: int
) -> str | None:
    """What stands behind the first `opening` till the next `closing`, `least` letters or
    more; None where nothing does. Patterns that allow for blanks before and behind it
    take time in the cube of their number, and more.
    """
    head = opening.search(text)
    end = -1 if head is None else text.find(closing, head.end() + least)
    return None if head is None or end < 0 else text[head.end() : end]


def _map(text: str) -> Any:
    if (filled := _inside(_MAP_FILLED, text, "}", 0)) is not None:
        puts = _PUT.findall(filled)
        return {key: guessed_value(value.strip()) for key, value in puts}
    return {} if _MAP_EMPTY.search(text) else text


def guessed_value(text: str) -> Any:
    """The value of an expression whose type is not said."""
    if text in _TRUTHS:
        return _TRUTHS[text]
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    for form in (_LONG, _FLOAT):
        value = number(text, *form)
        if value is not text:
            return value
    return python_number(text)


def python_number(text: str) -> Any:
    """An int or float as Python reads it, else the text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return text
