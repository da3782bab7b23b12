"""Calls as text -> `ToolCall`s: JSON, literals of Python, and `Name(key=value, ...)`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from alia_ctx.data.chat.conversation import RowError, ToolCall
from alia_ctx.data.chat.json_text import parse, write
from alia_ctx.data.chat.python_text import expression_of

_OPENING, _CLOSING = "([{", ")]}"
_CONSTANTS = {"true": "True", "false": "False", "null": "None"}


# What sets call the arguments of a call, and what else stands in one.
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "kwargs")
_CALL_KEYS = {"name", "id", "call_id", "type", "index", "function", "thought_signature"}
# Objects of these names are what a call gave, or what a program notes of it.
_NO_ARGUMENTS = re.compile(
    r"(?:.*_)?(?:results?|responses?|outputs?|observations?|errors?|meta|metadata|extra"
    r"|info|usage|stats|provider|cache|caller|schema|definition)(?:_.*)?",
    re.IGNORECASE,
)


def call_from(value: Any) -> ToolCall:
    """A call of an object: `{"name", "arguments"}`, OpenAI's nested form, or another of
    `ARGUMENT_KEYS` in the place of arguments; they may be an object or its text.

    RowError where it has two different ones, or says none and has a key that may be meant
    as such: any where no arguments are given, an object where they are empty.
    """
    if isinstance(value, str):
        value = literal(value)
    if not isinstance(value, dict):
        raise RowError(
            "unparsable_call", f"a call is {type(value).__name__}, no object"
        )
    function = value.get("function")
    function = function if isinstance(function, dict) else value
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowError("unparsable_call", f"a call has no name: {str(value)[:80]}")
    # Some have arguments beside the nested function.
    holders = [value] if function is value else [function, value]
    fields = [(k, v) for one in holders for k, v in one.items() if v is not None]
    given = [field for key, field in fields if key in ARGUMENT_KEYS]
    texts = [arguments_text(arguments, name) for arguments in given]
    said = [text for text in texts if parse(text)]
    if any(parse(text) != parse(said[0]) for text in said[1:]):
        detail = f"{name!r}: has two different objects of arguments"
        raise RowError("unparsable_call", detail)
    known = {*_CALL_KEYS, *ARGUMENT_KEYS}
    other = [
        key
        for key, field in fields
        if key not in known and (not given or _may_be_arguments(key, field))
    ]
    if not said and other:
        detail = f"{name!r}: has no arguments, and {other[0]!r}, which may be some"
        raise RowError("unparsable_call", detail)
    text = [*said, *texts, "{}"][0]
    return ToolCall(name, text, identity_of({**value, **function}, "call_id", "id"))


def _may_be_arguments(key: str, value: Any) -> bool:
    """Whether what stands beside empty arguments is an object, or the text of one, that may
    be the arguments themselves.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = literal(value)
        except RowError:
            return False
    return isinstance(value, dict) and bool(value) and not _NO_ARGUMENTS.fullmatch(key)


def identity_of(value: dict[str, Any], *keys: str) -> str | None:
    """The id under the first of `keys` that has one, as text; some sets number calls."""
    for key in keys:
        identity = value.get(key)
        if isinstance(identity, int) and not isinstance(identity, bool):
            return str(identity)
        if isinstance(identity, str) and identity:
            return identity
    return None


def is_same_call(one: ToolCall, other: ToolCall) -> bool:
    """Whether both call the same function with the same arguments."""
    same = parse(one.arguments) == parse(other.arguments)
    return one.name == other.name and same


def arguments_text(value: Any, name: str) -> str:
    """Arguments as the text of a JSON object; text that is one stays as it was written.

    RowError where it is none.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    if not isinstance(value, str):
        return _written(value, name)
    try:
        if isinstance(parse(value), dict):
            return value.strip()
    except ValueError as error:
        # Python's repr of a mapping, as some sets have it.
        try:
            parsed = _python_literal(value)
        except ValueError:
            detail = f"{name!r}: arguments are no JSON ({error}): {value[:80]!r}"
            raise RowError("unparsable_call", detail) from error
        return _written(parsed, name)
    raise RowError(
        "unparsable_call", f"{name!r}: arguments are no object: {value[:80]!r}"
    )


def _written(value: Any, name: str) -> str:
    if not isinstance(value, dict):
        detail = f"{name!r}: arguments are {type(value).__name__}, no object"
        raise RowError("unparsable_call", detail)
    try:
        return write(value)
    except ValueError as error:
        raise RowError("unparsable_call", f"{name!r}: {error}") from error


def literal(text: str) -> Any:
    """A JSON value, or a literal of Python (single quotes, True, None)."""
    try:
        return parse(text)
    except ValueError as error:
        try:
            return _python_literal(text)
        except ValueError:
            detail = f"{error} in {text.strip()[:80]!r}"
            raise RowError("unparsable_call", detail) from error


def _python_literal(text: str) -> Any:
    """ValueError for whatever is wrong with it: `{{'a': 1}}` is a TypeError to Python, as
    it would be a set of what cannot be hashed. A key twice is wrong as in JSON.
    """
    try:
        tree = expression_of(text.strip())
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                keys = [ast.dump(key) for key in node.keys if key is not None]
                if len(set(keys)) != len(keys):
                    raise ValueError("a mapping has a key twice")
        return ast.literal_eval(tree)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error


def calls_from_json(text: str) -> tuple[ToolCall, ...]:
    """Calls of the text of one object, or of an array of them."""
    value = literal(text)
    values = value if isinstance(value, list) else [value]
    return tuple(call_from(one) for one in values)


_CALL_HEAD = re.compile(r"\s*([^\s()\[\]{}'\"=,][^()\[\]{}'\"=,]*?)\s*\(")


def looks_pythonic(text: str) -> bool:
    """Whether a text begins as `[Name(` or `Name(key=`; blanks in names are allowed."""
    text = text.strip()
    if not text.startswith("[") or not text.endswith("]"):
        return False
    return _CALL_HEAD.match(text, 1) is not None


def pythonic_calls(text: str) -> tuple[ToolCall, ...]:
    """Calls of `[Func Name(a=1, b="x"), G()]`, or of one `F(a=1)` a line."""
    text = text.strip()
    if text.startswith("["):
        if not text.endswith("]"):
            raise RowError("unparsable_call", f"no closing bracket: {text[-80:]!r}")
        text = text[1:-1]
        parts = _split(text, ",")
    else:
        parts = [part for part in _split(text, "\n") if part.strip()]
    if not any(part.strip() for part in parts):
        raise RowError("unparsable_call", f"no call in {text[:80]!r}")
    return tuple(_pythonic_call(part) for part in parts)


def _pythonic_call(text: str) -> ToolCall:
    head = _CALL_HEAD.match(text)
    if head is None or not text.rstrip().endswith(")"):
        raise RowError("unparsable_call", f"no Name(...): {text.strip()[:80]!r}")
    arguments: dict[str, Any] = {}
    inside = text[head.end() : text.rstrip().rindex(")")]
    for part in _split(inside, ",") if inside.strip() else []:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key or key in arguments:
            detail = f"{head[1]!r}: no key=value: {part.strip()[:80]!r}"
            raise RowError("unparsable_call", detail)
        arguments[key] = _value(value.strip(), head[1])
    return ToolCall(head[1], _written(arguments, head[1]))


def _value(text: str, name: str) -> Any:
    try:
        return parse(text)  # numbers stay as they were written
    except ValueError:
        pass
    try:
        return _python_literal(_with_constants_of_python(text))
    except ValueError as error:
        detail = f"{name!r}: no value: {text[:80]!r}"
        raise RowError("unparsable_call", detail) from error


def _with_constants_of_python(text: str) -> str:
    pieces = []
    for piece, quoted in _quoted(text):
        if not quoted:
            piece = re.sub(r"\b(true|false|null)\b", lambda m: _CONSTANTS[m[1]], piece)
        pieces.append(piece)
    return "".join(pieces)


def _quoted(text: str) -> Iterator[tuple[str, bool]]:
    """Stretches of a text, and whether each is a quoted string (quotes included)."""
    start = position = 0
    while position < len(text):
        if text[position] not in "'\"":
            position += 1
            continue
        yield text[start:position], False
        start, quote = position, text[position]
        position += 1
        while position < len(text) and text[position] != quote:
            position += 2 if text[position] == "\\" else 1
        position = min(position + 1, len(text))
        yield text[start:position], True
        start = position
    yield text[start:], False


def _split(text: str, separator: str) -> list[str]:
    """Cut at separators outside of quotes and brackets."""
    parts, current, depth = [], "", 0
    for piece, quoted in _quoted(text):
        if quoted:
            current += piece
            continue
        for letter in piece:
            if letter == separator and depth == 0:
                parts.append(current)
                current = ""
                continue
            depth += (letter in _OPENING) - (letter in _CLOSING)
            current += letter
    if depth:
        raise RowError("unparsable_call", f"brackets do not match: {text[:80]!r}")
    return [*parts, current]
