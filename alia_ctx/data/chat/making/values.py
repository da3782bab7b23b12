"""Values for parameters: of the schema's type, plausible by the parameter's name."""

from __future__ import annotations

import json
import math
import random
import re
import string
from collections.abc import Iterator
from typing import Any

from alia_ctx.data.chat.making.languages import LANGUAGES

_NESTED = 2
_DEEPEST = 8
_LONGEST_TEXT = 1000


class NoValueError(Exception):
    """The schema asks for something that no value is made for."""


def value_for(
    name: str,
    schema: dict[str, Any] | bool,
    language: str,
    draw: random.Random,
    depth: int = 0,
) -> Any:
    """A value of JSON's types; NoValueError where the schema is too deep or unknown."""
    schema = _object(name, schema)
    if "$ref" in schema:
        raise NoValueError(f"{name} refers to {schema['$ref']}")
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return draw.choice([v for v in schema["enum"] if v is not None] or [None])
    for key in ("anyOf", "oneOf"):
        for part in schema.get(key) or []:
            if isinstance(part, dict) and part.get("type") != "null":
                return value_for(name, {**part}, language, draw, depth)
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "string")
    if kind == "string":
        return _text(name, schema, language, draw)
    if kind == "integer":
        return _integer(name, schema, draw)
    if kind == "number":
        low, high = _limits(schema, 0, 1000)
        number = round(draw.uniform(low, high), draw.choice((1, 2)))
        if not math.isfinite(number):
            raise NoValueError(f"{name} has no limits that a number keeps to")
        return number
    if kind == "boolean":
        return draw.random() < 0.5
    if depth >= _NESTED:
        raise NoValueError(f"{name} is nested too deeply")
    if kind == "array":
        # JSON Schema counts 3.0 as a whole number.
        most = min(int(schema.get("maxItems", 3)), 3)
        count = draw.randint(min(max(int(schema.get("minItems", 1)), 1), most), most)
        items = schema.get("items", True)
        found: list[Any] = []
        for _ in range(8 * count):
            one = value_for(name, items, language, draw, depth + 1)
            if one not in found and len(found) < count:
                found.append(one)
        return found
    if kind == "object":
        properties = schema.get("properties")
        if not properties:
            raise NoValueError(f"{name} is an object without properties")
        return {
            key: value_for(key, part, language, draw, depth + 1)
            for key, part in properties.items()
            if key in (schema.get("required") or properties)
        }
    raise NoValueError(f"{name} is of the type {kind}")


def _object(name: str, schema: Any) -> dict[str, Any]:
    """A schema may be a truth: any value is valid, or none."""
    if schema is False:
        raise NoValueError(f"{name} may have no value")
    return {} if schema is True else schema


def inlined(schema: Any, root: dict[str, Any], name: str = "", depth: int = 0) -> Any:
    """A schema with what its `$ref`s inside of `root` point to in their place.

    NoValueError where one points to nothing, outside, or to itself again and again.
    """
    if depth > 4 * _DEEPEST:
        raise NoValueError(f"{name} is nested too deeply")
    if isinstance(schema, list):
        return [inlined(part, root, name, depth + 1) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(reference := schema.get("$ref"), str):
        target: Any = root
        for part in reference.removeprefix("#").strip("/").split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            target = target.get(part) if isinstance(target, dict) else None
        if not reference.startswith("#/") or target is None:
            raise NoValueError(f"{reference} is not there")
        return inlined(target, root, reference, depth + 1)
    return {key: inlined(part, root, key, depth + 1) for key, part in schema.items()}


def _limits(schema: dict[str, Any], low: float, high: float) -> tuple[float, float]:
    low = schema.get("minimum", low)
    high = schema.get("maximum", max(high, low + high))
    step = schema.get("multipleOf", 1)
    if (
        isinstance(bound := schema.get("exclusiveMinimum"), int | float)
        and bound is not True
    ):
        low, high = bound + step, max(high, bound + 2 * step)
    if (
        isinstance(bound := schema.get("exclusiveMaximum"), int | float)
        and bound is not True
    ):
        high = bound - step
    return low, high


def _integer(name: str, schema: dict[str, Any], draw: random.Random) -> int:
    usual = (1990, 2030) if "year" in name.lower() else (1, 500)
    low, high = _limits(schema, *usual)
    step = schema.get("multipleOf", 1)
    least, most = -(-low // step), high // step
    return int(draw.randint(int(least), max(int(least), int(most))) * step)


def _text(name: str, schema: dict[str, Any], language: str, draw: random.Random) -> str:
    words = LANGUAGES[language]
    day = (
        f"{draw.randint(2019, 2031)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
    )
    hour = f"{draw.randint(0, 23):02}:{draw.randint(0, 59):02}"
    thing, number = draw.choice(words.things), draw.randint(2, 999)
    plain = re.sub(r"\W", "", thing.split()[0])
    by_format = {
        "date": day,
        "date-time": f"{day}T{hour}:00Z",
        "time": f"{hour}:00Z",
        "email": f"{draw.choice(words.people).split()[0].lower()}{number}@example.org",
        "uri": f"https://example.org/{plain}/{number}",
        "url": f"https://example.org/{plain}/{number}",
        "uuid": _uuid(draw),
    }
    if schema.get("format") in by_format:
        return by_format[schema["format"]]
    key = name.lower()
    by_name = (
        (r"date|day$", day),
        (r"time", hour),
        (r"mail", by_format["email"]),
        (r"ur[li]|link|endpoint", by_format["uri"]),
        (r"path|file|dir|folder", f"data/{plain}_{number}.txt"),
        (
            r"city|place|location|town|address|destination|origin",
            draw.choice(words.cities),
        ),
        (
            r"person|user|author|owner|customer|first_?name|last_?name",
            draw.choice(words.people),
        ),
        (r"lang", draw.choice(tuple(LANGUAGES))),
        (r"currenc", draw.choice(("EUR", "USD", "GBP", "JPY"))),
        (r"(^|_)id$|code|key|sku|token|hash", _code(draw)),
        (
            r"quer|text|message|content|body|title|descr|comment|prompt",
            f"{thing} {number}",
        ),
    )
    for pattern, value in by_name:
        if re.search(pattern, key):
            return _fitting(value, schema, draw)
    return _fitting(draw.choice((thing, f"{plain}_{number}")), schema, draw)


def _fitting(value: str, schema: dict[str, Any], draw: random.Random) -> str:
    """Of the length that the schema asks for."""
    most, least = schema.get("maxLength"), schema.get("minLength", 0)
    most = None if most is None else int(most)
    value = value if most is None or len(value) <= most else value[:most].strip()
    if least > _LONGEST_TEXT:
        raise NoValueError(
            f"a text of {least} characters or more is nothing to ask for"
        )
    while len(value) < least:
        value += draw.choice(string.ascii_lowercase)
    return value


def _code(draw: random.Random) -> str:
    letters = "".join(draw.choices(string.ascii_uppercase, k=2))
    return f"{letters}-{draw.randint(1000, 99999)}"


def _uuid(draw: random.Random) -> str:
    digits = "".join(draw.choices("0123456789abcdef", k=32))
    parts = (
        digits[:8],
        digits[8:12],
        f"4{digits[13:16]}",
        f"a{digits[17:20]}",
        digits[20:],
    )
    return "-".join(parts)


def spoken(value: Any) -> Iterator[str]:
    """What of a value a request must hold, as it is written: texts as they are, numbers
    and truths as JSON writes them, of arrays and objects each part.
    """
    if isinstance(value, dict):
        for item in value.values():
            yield from spoken(item)
    elif isinstance(value, list):
        for item in value:
            yield from spoken(item)
    elif isinstance(value, str):
        yield value
    else:
        yield json.dumps(value)


def is_said(value: Any, text: str) -> bool:
    """Whether each part of a value stands in a text, not inside a longer word or number."""
    return all(stands_alone(part, text) for part in spoken(value))


def stands_alone(part: str, text: str) -> bool:
    """Whether a part stands in a text, not inside a longer word or number."""
    before = r"(?<![\w.-])" if part[:1].isalnum() else ""
    after = r"(?!\w|\.\d)" if part[-1:].isalnum() else ""
    return bool(re.search(before + re.escape(part) + after, text))
