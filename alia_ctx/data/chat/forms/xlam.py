"""Salesforce/xlam-function-calling-60k: `query`, and `tools` and `answers` as JSON text.

Its parameters are no JSON schema: each is a name with a type of Python's
(`int, optional`, `List[str]`), a description and perhaps a default. They become one, so
that the model sees the form in which tools are offered to it later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from alia_ctx.data.chat.conversation import (
    Conversation,
    Message,
    RowError,
    function_of,
    tools_text,
)
from alia_ctx.data.chat.forms.beside import with_prompt
from alia_ctx.data.chat.forms.calls import call_from
from alia_ctx.data.chat.json_text import parse, plain, write
from alia_ctx.data.chat.python_text import literal_of

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
_OR = re.compile(r"\s+or\s+", re.IGNORECASE)
# A name, what it holds in brackets, and what is said behind it.
_SHAPE = re.compile(r"([A-Za-z][\w.]*)\s*(?:\[(.*)\])?(?:\s*(\W.*))?", re.DOTALL)
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
    calls = tuple(call_from(answer) for answer in answers)
    messages = [Message("user", query), Message("assistant", None, calls)]
    return Conversation(
        tuple(with_prompt(record, messages)),
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
    elif not _is_sound(parameters):
        parameters = _mended(function["name"], parameters)
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


def _is_sound(parameters: dict[str, Any]) -> bool:
    """Whether what describes itself as a schema has the types of one."""
    names = {*_TYPES.values(), "null"}
    for about in (parameters, *parameters["properties"].values()):
        kinds = about.get("type", "object") if isinstance(about, dict) else 0
        if any(k not in names for k in (kinds if isinstance(kinds, list) else [kinds])):
            return False
        if about is not parameters and isinstance(about.get("required"), bool):
            return False
    return True


def _mended(function: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A schema with types of Python's, or whose properties say of themselves that they
    are required.
    """
    schema = _schema(function, parameters["properties"])
    said = parameters.get("required")
    if not isinstance(said, list):
        abouts = parameters["properties"].items()
        said = [name for name, about in abouts if about.get("required") is True]
    return {**parameters, "type": "object", **schema, "required": said}


def _schema(function: str, parameters: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for name, about in parameters.items():
        if not isinstance(about, dict):
            detail = f"parameter {name!r} of {function!r} is no object"
            raise RowError("unparsable_tools", detail)
        properties[name], optional = _property(f"{name!r} of {function!r}", about)
        if not optional:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required}


def _property(where: str, about: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """JSON schema of a parameter, and whether it is optional.

    A type that is none of JSON schema's goes into the description, in its own words;
    `required` and `optional` of the parameter itself go, as a schema lists them apart.
    """
    kind = about.get("type", "str")
    if not isinstance(kind, str | list):
        detail = f"the type of {where} is {kind!r}, no name"
        raise RowError("unparsable_tools", detail[:160])
    words = " | ".join(map(str, kind)) if isinstance(kind, list) else kind
    known = read_type(words)
    schema = known.schema
    # As JSON schema writes several.
    if isinstance(kind, list) and (names := _names(kind)):
        schema = {"type": names}
    optional = known.optional or "default" in about
    rest = {key: item for key, item in about.items() if key != "type"}
    for key, means in (("required", False), ("optional", True)):
        if isinstance(rest.get(key), bool):  # a list is of an object's own properties
            optional = means if rest.pop(key) else not means
    aside = [f"type: {words.strip()}"] if not known.whole and words.strip() else []
    for key in [key for key in rest if not _fits(key, rest[key])]:
        aside.append(f"{key}: {_as_words(rest.pop(key))}")
    if aside:
        told = rest.get("description", "")
        rest["description"] = f"{told.rstrip()} ({'; '.join(aside)})".strip()
    return {**schema, **rest}, optional


def _fits(key: str, value: Any) -> bool:
    """Whether this is a key of a JSON schema, or of none, and no key with a wrong value."""
    if key == "default" or (key == "description" and isinstance(value, str)):
        return True  # nearly all: a validator takes its time
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema({key: plain(value)})
    except jsonschema.SchemaError:
        return False
    return True


def _as_words(value: Any) -> str:
    return value.strip() if isinstance(value, str) else write(value)


@dataclass(frozen=True)
class ReadType:
    """A type of Python's as JSON schema; whether it says optional, and whether the schema
    says all of it but that.
    """

    schema: dict[str, Any]
    optional: bool = False
    whole: bool = True


def read_type(words: str) -> ReadType:
    """JSON schema of a type as xLAM writes it.

    `int, optional` -> integer; `List[int]` -> array of integers; `Dict[str, int]` ->
    object of integers; `Literal['a']` -> enum; `Union[int, float]`, `int | float`,
    `int or float` -> any of both; with `None` among them, as `Optional[str]`, it is
    optional. What follows a known type (`str (ISO 8601)`) restricts nothing.
    """
    head, *rest = _parts(words) or [""]
    called = [part for part in rest if "optional" in part.lower()]
    optional, whole = bool(called), len(called) == len(rest)
    if match := _CALLED_OPTIONAL.fullmatch(head):
        head, optional = match[1], True
    read = _read_one(head)
    return ReadType(read.schema, read.optional or optional, read.whole and whole)


def _read_one(head: str) -> ReadType:
    quoted = "'" in head or '"' in head
    parts = _parts(head if quoted else _OR.sub("|", head), "|")
    if len(parts) > 1:
        return _any_of(parts)
    shaped = _SHAPE.fullmatch(head.strip())
    if shaped is None:
        return ReadType({}, whole=False)
    name, inside, more = shaped.groups()
    name = name.lower().removeprefix("typing.")
    if name == "optional" and inside:
        return replace(read_type(inside), optional=True)
    if name == "union" and inside:
        return _any_of(_parts(inside))
    whole = not more
    if name == "literal" and inside:
        return _literal(inside, whole)
    kind = "null" if name in _NONE else _TYPES.get(name)
    if kind is None:
        return ReadType({}, whole=False)
    schema: dict[str, Any] = {"type": kind}
    inner = [_nullable(part) for part in _parts(inside or "") if part != "..."]
    whole = whole and all(part.whole for part in inner)
    if kind == "array" and inner:
        one = all(part.schema == inner[0].schema for part in inner)
        if one and inner[0].schema:
            schema["items"] = inner[0].schema
        whole = whole and one and (name != "tuple" or "..." in (inside or ""))
    elif kind == "object" and len(inner) == 2:
        if inner[1].schema:
            schema["additionalProperties"] = inner[1].schema
        whole = whole and inner[0].schema == {"type": "string"}
    else:
        whole = whole and not inner
    return ReadType(schema, whole=whole)


def _nullable(words: str) -> ReadType:
    """A type inside of another: what is optional there may be null."""
    read = read_type(words)
    if not read.optional or not read.schema:
        return read
    return replace(read, schema={"anyOf": [read.schema, {"type": "null"}]})


def _any_of(parts: list[str]) -> ReadType:
    kinds = [read_type(part) for part in parts if part.lower() not in _NONE]
    schemas = [kind.schema for kind in kinds]
    different = [s for n, s in enumerate(schemas) if s not in schemas[:n]]
    if not all(different):  # one that is not known may be anything
        different = []
    return ReadType(
        {"anyOf": different} if len(different) > 1 else (different or [{}])[0],
        len(kinds) < len(parts) or any(kind.optional for kind in kinds),
        bool(different) and all(kind.whole for kind in kinds),
    )


def _literal(inside: str, whole: bool) -> ReadType:
    try:
        values = list(literal_of(f"[{inside}]"))
        write(values)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return ReadType({}, whole=False)
    named = [value for value in values if value is not None]
    different = [v for n, v in enumerate(named) if repr(v) not in map(repr, named[:n])]
    schema: dict[str, Any] = {"enum": different} if different else {}
    if different and all(isinstance(value, str) for value in different):
        schema = {"type": "string", **schema}
    return ReadType(schema, len(named) < len(values), whole and bool(different))


def _names(kinds: list[Any]) -> list[str] | None:
    """JSON schema's names of several types; None where one is no type."""
    known = {**_TYPES, "null": "null", "none": "null"}
    names = [known.get(kind.lower()) for kind in kinds if isinstance(kind, str)]
    whole = names and len(names) == len(kinds) and None not in names
    return [*dict.fromkeys(name for name in names if name)] if whole else None


def _parts(text: str, separator: str = ",") -> list[str]:
    """Cut at separators outside of brackets and quotes."""
    parts, depth, quote, current = [], 0, "", ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        elif letter == separator and depth == 0:
            parts.append(current.strip())
            current = ""
            continue
        else:
            depth += (letter in "[(") - (letter in "])")
        current += letter
    return [part for part in [*parts, current.strip()] if part]
