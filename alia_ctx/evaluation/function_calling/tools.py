"""Functions as BFCL documents them -> OpenAI's tools, as its own OpenAI handler shows
them to a model (`convert_to_tool`, and the hints for languages, of `bfcl-eval`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from alia_ctx.evaluation.function_calling.checker import WITH_ITEMS, Language

FunctionNames = Literal["underscore", "as_is"]

_OF_JSON_SCHEMA = {
    **dict.fromkeys(("integer", "byte", "short", "long", "Bigint"), "integer"),
    **dict.fromkeys(("number", "float", "double"), "number"),
    **dict.fromkeys(("string", "any", "char", "Any", "String"), "string"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "list", "tuple", "ArrayList", "Array"), "array"),
    **dict.fromkeys(("Queue", "Stack"), "array"),
    **dict.fromkeys(("dict", "object", "HashMap", "Hashtable"), "object"),
}
_SYNTAX: dict[Language, str] = {
    "python": "Python 3",
    "java": "Java 8 SDK",
    "javascript": "JavaScript",
}
_CALLED: dict[Language, str] = {"java": "Java", "javascript": "JavaScript"}


def shown_name(name: str, names: FunctionNames) -> str:
    """A function's name as the model sees it: OpenAI's API allows no dots in names."""
    return name.replace(".", "_") if names == "underscore" else name


def tools_of(
    functions: Sequence[Mapping[str, Any]],
    language: Language,
    names: FunctionNames = "underscore",
) -> list[dict[str, Any]]:
    """Tools in OpenAI's nested form, with types of JSON Schema.

    All parameters of Java and JavaScript functions are texts that hold source; their
    descriptions say which type.
    """
    tools = []
    for original in functions:
        function = copy.deepcopy(dict(original))
        function["name"] = shown_name(function["name"], names)
        hint = f" Note that the provided function is in {_SYNTAX[language]} syntax."
        function["description"] = f"{function.get('description', '')}{hint}"
        parameters = function["parameters"]
        parameters["type"] = "object"
        if language in _CALLED:
            for schema in parameters["properties"].values():
                _as_source(schema, _CALLED[language])
        for schema in parameters["properties"].values():
            _as_json_schema(schema)
        tools.append({"type": "function", "function": function})
    return tools


def _as_source(schema: dict[str, Any], language: str) -> None:
    kind = schema["type"]
    if kind == "any":
        hint = f" This parameter can be of any type of {language} object in string"
    else:
        hint = f" This is {language} {kind} type parameter in string"
    hint += " representation."
    if kind in WITH_ITEMS:
        items = schema.pop("items")["type"]
        hint += f" The list elements are of type {items}; they are not in string"
        hint += " representation."
    if kind == "dict" and "properties" in schema:
        inner = json.dumps(schema.pop("properties"))
        hint += " The dictionary entries have the following schema; they are not in "
        hint += f"string representation. {inner}"
    schema["description"] = f"{schema.get('description', '')}{hint}"
    schema["type"] = "string"


def _as_json_schema(schema: dict[str, Any]) -> None:
    """BFCL's own handler looks at the properties of an object and at two levels of
    items; so do we, as the model is to see the same.
    """
    kind = schema.get("type", "string")
    if kind == "float":
        schema["format"] = "float"
        schema["description"] = (
            f"{schema.get('description', '')} This is a float type value."
        )
    schema["type"] = _OF_JSON_SCHEMA.get(kind, "string")
    if schema["type"] not in ("array", "object"):
        return
    if "properties" in schema:
        for inner in schema["properties"].values():
            _as_json_schema(inner)
    elif "items" in schema:
        items = schema["items"]
        items["type"] = _OF_JSON_SCHEMA.get(items["type"], "string")
        if items["type"] == "array" and "items" in items:
            inner = items["items"]
            inner["type"] = _OF_JSON_SCHEMA.get(inner["type"], "string")
        elif items["type"] == "object" and "properties" in items:
            for inner in items["properties"].values():
                _as_json_schema(inner)
