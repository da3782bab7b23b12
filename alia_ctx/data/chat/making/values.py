"""Values for parameters: of the schema's type, plausible by the parameter's name."""

from __future__ import annotations

import json
import math
import random
import re
import string
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from alia_ctx.data.chat.making.catalogue import pools
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.reading_back import tag_in

_NESTED = 2
_DEEPEST = 8
_LONGEST_TEXT = 1000
_LONGEST_ARRAY = 12


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
    if isinstance(schema.get("enum"), list):
        return draw.choice(_choices(name, schema["enum"]))
    if alternatives := _alternatives(schema):
        return _of_any(name, alternatives, language, draw, depth)
    kind = schema.get("type") or _kind_by_keys(schema)
    if kind == "string":
        return _text(name, schema, language, draw)
    if kind == "integer":
        return _integer(name, schema, draw)
    if kind == "number":
        return _number(name, schema, draw)
    if kind == "boolean":
        return draw.random() < 0.5
    if kind == "null":
        return None
    if depth >= _NESTED:
        raise NoValueError(f"{name} is nested too deeply")
    if kind == "array":
        return _array(name, schema, language, draw, depth)
    if kind == "object":
        return _named(name, schema, language, draw, depth)
    raise NoValueError(f"{name} is of the type {kind}")


def _choices(name: str, enum: list[Any]) -> list[Any]:
    """Those that calls can have: no tag of calls, and null where there is nothing else."""
    usable = [value for value in enum if tag_in(value) is None]
    if not usable:
        told = f" but with {tag_in(enum)}, a tag of calls" if enum else ""
        raise NoValueError(f"{name} has no choice{told}")
    return [value for value in usable if value is not None] or usable


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of which a value may be, with what is said beside them; `null` only
    where there is nothing else, as nobody asks for it.
    """
    for key in ("anyOf", "oneOf"):
        if parts := [part for part in schema.get(key) or [] if isinstance(part, dict)]:
            beside = {k: v for k, v in schema.items() if k != key}
            told = [part for part in parts if part.get("type") != "null"]
            return [{**beside, **part} for part in told or parts]
    if isinstance(kinds := schema.get("type"), list):
        told = [kind for kind in kinds if kind != "null"]
        return [{**schema, "type": kind} for kind in told or kinds]
    return []


def _of_any(
    name: str,
    alternatives: list[dict[str, Any]],
    language: str,
    draw: random.Random,
    depth: int,
) -> Any:
    """Of the first that has a value, in an order that is drawn."""
    told = ""
    for part in draw.sample(alternatives, len(alternatives)):
        try:
            return value_for(name, part, language, draw, depth)
        except NoValueError as error:
            told = str(error)
    raise NoValueError(told)


def _kind_by_keys(schema: dict[str, Any]) -> str:
    """Of a schema that names no type."""
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _array(
    name: str, schema: dict[str, Any], language: str, draw: random.Random, depth: int
) -> list[Any]:
    """What has its own place is there whole; what is behind it, or all, is distinct where
    there are enough values.
    """
    places = schema.get("prefixItems") or []
    items = schema.get("items", not places)
    usual = (len(places), len(places) + (0 if items is False else 2))
    low, high = usual if places else (1, 3)
    # JSON Schema counts 3.0 as a whole number.
    least, limit = int(schema.get("minItems", 0)), schema.get("maxItems")
    if least > _LONGEST_ARRAY:
        raise NoValueError(f"{name} is nothing to ask for, with {least} parts or more")
    low, high = max(low, least), max(high, least)
    if limit is not None:
        low, high = min(low, int(limit)), min(high, int(limit))
    if items is False:
        low, high = min(low, len(places)), min(high, len(places))
    count = draw.randint(low, high)
    found = [
        value_for(name, part, language, draw, depth + 1) for part in places[:count]
    ]
    behind: list[Any] = []
    wanted = count - len(found)
    for _ in range(8 * wanted):
        one = value_for(name, items, language, draw, depth + 1)
        if one not in behind and len(behind) < wanted:
            behind.append(one)
    if not schema.get("uniqueItems"):
        while behind and len(found) + len(behind) < least:
            behind.append(draw.choice(behind))
    return found + behind


def _named(
    name: str, schema: dict[str, Any], language: str, draw: random.Random, depth: int
) -> dict[str, Any]:
    """An object: what is required of its properties, or all that can be made; or, of one
    whose names are free, values of its kind by names that are drawn.
    """
    if properties := schema.get("properties"):
        required = schema.get("required")
        made: dict[str, Any] = {}
        causes: list[NoValueError] = []
        for key, part in properties.items():
            if required and key not in required:
                continue
            try:
                made[key] = value_for(key, part, language, draw, depth + 1)
            except NoValueError as error:
                if required:
                    raise
                causes.append(error)
        if causes and not made:
            raise causes[0]
        return made
    values = schema.get("additionalProperties")
    if not isinstance(values, dict) or not values:
        raise NoValueError(f"{name} is an object without properties")
    options = _object(name, schema.get("propertyNames", {})).get("enum")
    # Names are texts, whatever else the choices hold.
    names = (
        pools()["word"]
        if options is None
        else [name for name in options if isinstance(name, str)]
    )
    low = max(1, int(schema.get("minProperties", 1)))
    high = min(len(names), int(schema.get("maxProperties", max(3, low))))
    if low > high:
        raise NoValueError(f"{name} is an object of {low} names or more")
    chosen = draw.sample(names, draw.randint(low, high))
    return {key: value_for(key, values, language, draw, depth + 1) for key in chosen}


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


@dataclass(frozen=True)
class _Limits:
    """Numbers that a schema allows, and whether it does not allow the limits themselves."""

    low: float
    high: float
    above: bool
    below: bool

    @classmethod
    def of(cls, schema: dict[str, Any], low: float, high: float) -> _Limits:
        """`low` and `high` where the schema has none; the one moves with the other."""
        least = _limit(schema, "minimum", "exclusiveMinimum", max)
        most = _limit(schema, "maximum", "exclusiveMaximum", min)
        if least is not None and most is None:
            high = max(high, least + high)
        if most is not None and least is None and most <= low:
            low = most - (high - low)
        return cls(
            low if least is None else least,
            high if most is None else most,
            least is not None and least == schema.get("exclusiveMinimum"),
            most is not None and most == schema.get("exclusiveMaximum"),
        )

    def hold(self, number: float) -> bool:
        low = self.low < number if self.above else self.low <= number
        return low and (number < self.high if self.below else number <= self.high)


def _limit(
    schema: dict[str, Any], key: str, exclusive: str, of: Callable[..., Any]
) -> Any:
    found = [schema[k] for k in (key, exclusive) if k in schema]
    return of((v for v in found if not isinstance(v, bool)), default=None)


def _number(name: str, schema: dict[str, Any], draw: random.Random) -> float:
    limits, step = _Limits.of(schema, 0, 1000), schema.get("multipleOf")
    number = draw.uniform(limits.low, limits.high)
    if math.isfinite(number):
        # As few digits as the limits leave room for.
        for digits in (draw.choice((1, 2)), 3, 6, 9):
            rounded = round(number, digits)
            if step:
                rounded = round(round(rounded / step) * step, digits)
            if limits.hold(rounded):
                return rounded
    raise NoValueError(f"{name} has no limits that a number keeps to")


def _integer(name: str, schema: dict[str, Any], draw: random.Random) -> int:
    # What `--simple` makes stays the same to the byte, years that are far ahead too.
    usual = (1990, 4020) if "year" in name.lower() else (1, 501)
    limits, step = _Limits.of(schema, *usual), schema.get("multipleOf", 1)
    least, most = int(-(-limits.low // step)), int(limits.high // step)
    least += limits.above and least * step == limits.low
    most -= limits.below and most * step == limits.high
    if least > most:
        raise NoValueError(f"{name} has no limits that a whole number keeps to")
    return int(draw.randint(least, most) * step)


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
    """Of the length that the schema asks for; NoValueError where it is not of its form."""
    most, least = schema.get("maxLength"), schema.get("minLength", 0)
    most = None if most is None else int(most)
    value = value if most is None or len(value) <= most else value[:most].strip()
    if least > _LONGEST_TEXT:
        raise NoValueError(
            f"a text of {least} characters or more is nothing to ask for"
        )
    while len(value) < least:
        value += draw.choice(string.ascii_lowercase)
    if "pattern" in schema and not re.search(schema["pattern"], value):
        raise NoValueError(f"no text is made that has the form {schema['pattern']}")
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


def spoken(value: Any, known: Collection[str] | None = None) -> Iterator[str]:
    """What of a value a request must hold, as it is written: texts as they are, numbers
    and truths as JSON writes them, of arrays and objects each part, and of objects the
    names that are not among the `known` ones of a schema.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            if known is not None and name not in known:
                yield name
            yield from spoken(item, known)
    elif isinstance(value, list):
        for item in value:
            yield from spoken(item, known)
    elif isinstance(value, str):
        yield value
    else:
        yield json.dumps(value)


def known_names(schema: Any) -> set[str]:
    """The names of all properties in a schema."""
    if isinstance(schema, list):
        return {name for part in schema for name in known_names(part)}
    if not isinstance(schema, dict):
        return set()
    properties = schema.get("properties")
    own = set(properties) if isinstance(properties, dict) else set()
    return own.union(*(known_names(part) for part in schema.values()))


def is_said(value: Any, text: str, known: Collection[str] | None = None) -> bool:
    """Whether each part of a value stands in a text, not inside a longer word or number."""
    return all(stands_alone(part, text) for part in spoken(value, known))


def stands_alone(part: str, text: str) -> bool:
    """Whether a part stands in a text, not inside a longer word or number."""
    before = r"(?<![\w.-])" if part[:1].isalnum() else ""
    after = r"(?!\w|\.\d)" if part[-1:].isalnum() else ""
    return bool(re.search(before + re.escape(part) + after, text))
