"""Salesforce/xlam-function-calling-60k: `query`, and `tools` and `answers` as JSON text.

Its parameters are no JSON schema: each is a name with a type of Python's
(`int, optional`, `List[str]`), a description and perhaps a default. They become one, so
that the model sees the form in which tools are offered to it later.
"""

from __future__ import annotations

from typing import Any

from alia_ctx.data.chat.conversation import (
    Conversation,
    Message,
    RowError,
    function_of,
)
from alia_ctx.data.chat.forms.calls import call_from
from alia_ctx.data.chat.json_text import parse, write

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
        write([as_json_schema(tool) for tool in tools]) if tools else None,
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
    # A parameter may be called `properties`: a schema says that it is of an object.
    is_schema = isinstance(parameters.get("properties"), dict) and (
        parameters.get("type") in ("object", "dict")
    )
    if not is_schema:
        parameters = _schema(function["name"], parameters)
    rest = {k: v for k, v in function.items() if k not in ("parameters", "type")}
    return {"type": "function", "function": {**rest, "parameters": parameters}}


def _schema(function: str, parameters: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for name, about in parameters.items():
        if not isinstance(about, dict):
            detail = f"parameter {name!r} of {function!r} is no object"
            raise RowError("unparsable_tools", detail)
        kind = about.get("type", "str")
        words = kind if isinstance(kind, str) else "str"
        schema, optional = type_schema(words)
        rest = {key: item for key, item in about.items() if key != "type"}
        properties[name] = {**schema, **rest}
        if not optional and "default" not in about:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required}


def type_schema(words: str) -> tuple[dict[str, Any], bool]:
    """JSON schema of a type as xLAM writes it, and whether it says optional.

    `int, optional` -> integer; `List[int]` -> array of integers; `Optional[str]`;
    `Union[int, float]` -> any of both. A type that is no name of Python's gives no
    restriction.
    """
    head, _, rest = words.partition(", ")
    # `Dict[str, int], optional`: the comma inside brackets separates nothing.
    while head.count("[") != head.count("]") and rest:
        more, _, rest = rest.partition(", ")
        head = f"{head}, {more}"
    optional = "optional" in rest.lower()
    name, bracket, inside = head.strip().partition("[")
    inside = inside.rsplit("]", 1)[0] if bracket else ""
    name = name.strip().lower().removeprefix("typing.")
    if name == "optional":
        schema, _ = type_schema(inside)
        return schema, True
    if name == "union":
        kinds = [type_schema(part)[0] for part in _parts(inside)]
        return {"anyOf": kinds}, optional
    kind = _TYPES.get(name)
    if kind is None:
        return {}, optional
    schema = {"type": kind}
    if kind == "array" and bracket and (parts := _parts(inside)):
        items = type_schema(parts[0])[0]
        if items and len({part for part in parts if part != "..."}) == 1:
            schema["items"] = items  # type: ignore[assignment]
    return schema, optional


def _parts(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [part for part in [*parts, current.strip()] if part]
