"""JSON schemas of what Python's types are made of: choices, alternatives, arrays, objects."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from alia_ctx.files import parse_json

Schema = dict[str, Any]
NULL: Schema = {"type": "null"}
_OF_CHOICES: dict[type, str] = {str: "string", int: "integer", bool: "boolean"}


def union(parts: Sequence[Schema | None]) -> Schema | None:
    """What is valid by any of them, `null` last. None stands for what JSON has no form for:
    no value of JSON's is of it, so it goes; None of nothing else, or of `null` alone.
    """
    flat: list[Schema] = []
    for part in parts:
        if part is None:
            continue
        if not part:
            return {}  # anything
        flat += part["anyOf"] if set(part) == {"anyOf"} else [part]
    distinct = [part for n, part in enumerate(flat) if part not in flat[:n]]
    distinct.sort(key=lambda part: part == NULL)
    if not distinct or distinct == [NULL]:
        return None
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def choices(values: Sequence[Any]) -> Schema | None:
    """Some constants, with their type if all are of one; None where there are none."""
    distinct = list({(type(value), value): value for value in values}.values())
    if not distinct:
        return None
    if distinct == [None]:
        return NULL
    (kind, *others) = {type(value) for value in distinct}
    typed = {} if others or kind not in _OF_CHOICES else {"type": _OF_CHOICES[kind]}
    return {**typed, "enum": distinct}


def array(items: Schema | None, *, unique: bool = False) -> Schema | None:
    """Any number of `items`; of those of anything (`{}`) the type alone."""
    if items is None:
        return None
    more = {"uniqueItems": True} if unique else {}
    return {"type": "array", **({"items": items} if items else {}), **more}


def row(
    places: Sequence[Schema | None], rest: Schema | None = None, *, more: bool = False
) -> Schema | None:
    """An array with a schema for each of its first places; behind them nothing, or `more`
    of `rest`.
    """
    if None in places or (more and rest is None):
        return None
    if not places:
        return array(rest) if more else {"type": "array", "maxItems": 0}
    schema: Schema = {"type": "array", "prefixItems": [*places]}
    if not more:
        return {**schema, "minItems": len(places), "maxItems": len(places)}
    return {**schema, **({"items": rest} if rest else {}), "minItems": len(places)}


def mapping(keys: Schema | None, values: Schema | None) -> Schema | None:
    """An object whose names are not known. JSON's names are texts: None where keys are
    something else.
    """
    if keys is None or values is None or (names := _names(keys)) is None:
        return None
    schema: Schema = {"type": "object"}
    if names:
        schema["propertyNames"] = names
    return {**schema, **({"additionalProperties": values} if values else {})}


def _names(keys: Schema) -> Schema | None:
    """What a schema of keys says of those that are texts; None where none are."""
    if "anyOf" in keys:
        parts = [names for part in keys["anyOf"] if (names := _names(part)) is not None]
        return union(parts)
    if "enum" in keys:
        texts = [value for value in keys["enum"] if isinstance(value, str)]
        return {"enum": texts} if texts else None
    if keys.get("type", "string") != "string":
        return None
    return {key: value for key, value in keys.items() if key != "type"}


def constant(node: ast.expr) -> Any:
    """A literal as JSON has it, with lists for tuples and texts for keys; ValueError where
    JSON has no form for it.
    """
    try:
        return parse_json(json.dumps(ast.literal_eval(node), allow_nan=False))
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("no constant of JSON's") from error


def with_default(schema: Schema, node: ast.expr) -> Schema:
    """With its default, if that is JSON and valid."""
    import jsonschema

    try:
        value = constant(node)
    except ValueError:
        return schema
    is_valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    return {**schema, "default": value} if is_valid else schema
