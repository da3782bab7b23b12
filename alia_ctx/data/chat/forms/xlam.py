"""Salesforce/xlam-function-calling-60k: `query`, and `tools` and `answers` as JSON text.

Its parameters are no JSON schema: each is a name with a type of Python's
(`int, optional`, `List[str]`), a description and perhaps a default. They become one, so
that the model sees the form in which tools are offered to it later.
"""

from __future__ import annotations

import re
from typing import Any

from alia_ctx.data.chat.conversation import (
    Conversation,
    Message,
    RowError,
    function_of,
    tools_text,
)
from alia_ctx.data.chat.forms.calls import call_from
from alia_ctx.data.chat.json_text import parse

_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "sequence": "array",
    "dict": "object",
    "object": "object",
    "mapping": "object",
}
_NONE = ("none", "null", "nonetype")
_CALLED_OPTIONAL = re.compile(r"(.*?)\s*\(optional\)\s*", re.IGNORECASE | re.DOTALL)
# What may stand beside `properties` in the schema of an object.
_SCHEMA_KEYS = {
    *("properties", "required", "additionalProperties", "description", "title"),
    *("$defs", "definitions", "$schema", "default"),
}


def read(record: dict[str, Any]) -> Conversation:
    query = record["query"]
    if not isinstance(query, str):
        detail = f"query is {type(query).__name__}, no text"
        raise RowError("content_not_text", detail)
    answers = _list(record["answers"], "unparsable_call", "answers")
    if not answers:
        raise RowError("no_answer", "answers are empty: nothing to learn")
    tools = _list(record["tools"], "unparsable_tools", "tools")
    return Conversation(
        (
            Message("user", query),
            Message("assistant", None, tuple(call_from(answer) for answer in answers)),
        ),
        tools_text([as_json_schema(tool) for tool in tools]),
    )


def _list(value: Any, reason: str, name: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError as error:
            raise RowError(reason, f"{name}: {error}") from error
    if not isinstance(value, list):
        raise RowError(reason, f"{name} are {type(value).__name__}, no list")
    return value


def as_json_schema(tool: Any) -> dict[str, Any]:
    """A tool in OpenAI's nested form, with parameters as a JSON schema; one that has
    such a schema already keeps it.

    Required is a parameter that is not called optional and has no default.
    """
    function = function_of(tool)
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        name = function["name"]
        raise RowError("unparsable_tools", f"parameters of {name!r} are no object")
    if not _is_schema(parameters):
        parameters = _schema(function["name"], parameters)
    elif "type" not in parameters:
        parameters = {"type": "object", **parameters}
    rest = {k: v for k, v in function.items() if k not in ("parameters", "type")}
    return {"type": "function", "function": {**rest, "parameters": parameters}}


def _is_schema(parameters: dict[str, Any]) -> bool:
    """Whether this is a JSON schema, and no mapping of parameters one of which is called
    `properties`: it says that it is of an object, or has nothing but what schemas have.
    """
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return False
    if "type" in parameters:
        return parameters["type"] in ("object", "dict")
    return parameters.keys() <= _SCHEMA_KEYS and all(
        isinstance(about, dict) for about in properties.values()
    )


def _schema(function: str, parameters: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for name, about in parameters.items():
        if not isinstance(about, dict):
            detail = f"parameter {name!r} of {function!r} is no object"
            raise RowError("unparsable_tools", detail)
        kind = about.get("type", "str")
        if not isinstance(kind, str | list):
            detail = f"the type of {name!r} of {function!r} is {kind!r}, no name"
            raise RowError("unparsable_tools", detail[:160])
        if isinstance(kind, list):  # as JSON schema writes several
            kind = " | ".join(map(str, kind))
        schema, optional = type_schema(kind)
        if isinstance(about.get("type"), list) and (kinds := _names(about["type"])):
            schema = {"type": kinds}
        rest = {key: item for key, item in about.items() if key != "type"}
        properties[name] = {**schema, **rest}
        if not optional and "default" not in about:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required}


def type_schema(words: str) -> tuple[dict[str, Any], bool]:
    """JSON schema of a type as xLAM writes it, and whether it says optional.

    `int, optional` -> integer; `List[int]` -> array of integers; `Optional[str]`;
    `Union[int, float]`, `int | float` -> any of both; with `None` among them it is
    optional. A type that is no name of Python's gives no restriction.
    """
    head, *rest = _parts(words) or [""]
    optional = any("optional" in part.lower() for part in rest)
    if match := _CALLED_OPTIONAL.fullmatch(head):
        head, optional = match[1], True
    name, bracket, inside = head.strip().partition("[")
    inside = inside.rsplit("]", 1)[0] if bracket else ""
    name = name.strip().lower().removeprefix("typing.")
    if name == "optional":
        schema, _ = type_schema(inside)
        return schema, True
    parts = _parts(inside) if name == "union" else _parts(head, "|")
    if name == "union" or len(parts) > 1:
        kinds = [type_schema(part)[0] for part in parts if part.lower() not in _NONE]
        optional = optional or len(kinds) < len(parts)
        return ({"anyOf": kinds} if len(kinds) > 1 else (kinds or [{}])[0]), optional
    kind = _TYPES.get(name)
    if kind is None:
        return {}, optional
    schema = {"type": kind}
    if kind == "array" and bracket and (parts := _parts(inside)):
        items = type_schema(parts[0])[0]
        if items and len({part for part in parts if part != "..."}) == 1:
            schema["items"] = items  # type: ignore[assignment]
    return schema, optional


def _names(kinds: list[Any]) -> list[str] | None:
    """JSON schema's names of several types; None where one is no type."""
    known = {**_TYPES, "null": "null", "none": "null"}
    names = [known.get(kind.lower()) for kind in kinds if isinstance(kind, str)]
    whole = names and len(names) == len(kinds) and None not in names
    return [name for name in names if name is not None] if whole else None


def _parts(text: str, separator: str = ",") -> list[str]:
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == separator and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [part for part in [*parts, current.strip()] if part]
