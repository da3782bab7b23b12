"""Values of concepts: texts from pools or composed, numbers within limits, parts of each."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterable
from typing import Any

from alia_ctx.data.chat.making.catalogue import concepts, pools
from alia_ctx.data.chat.making.parts import Part


def value_of(part: Part, language: str, draw: random.Random) -> Any:
    """A value that the parameter's schema allows; of an object what it requires, and some
    of the rest.
    """
    schema = part.schema
    if schema.get("enum"):
        return draw.choice(schema["enum"])
    kind = schema["type"]
    if kind == "object":
        kept = [p for p in part.children if p.required or draw.random() < 0.5]
        kept = kept or [draw.choice(part.children)]
        made = {child.name: value_of(child, language, draw) for child in kept}
        return in_order(made, kept)
    if kind == "array":
        (item,) = part.children
        found: list[Any] = []
        count = draw.randint(2, 4) if item.schema["type"] != "array" else 2
        for _ in range(4 * count):
            one = value_of(item, language, draw)
            if one not in found and len(found) < count:
                found.append(one)
        return found
    if part.concept is None:
        return _plain(kind, draw)
    return _simple(part.concept, language, draw)


def in_order(values: dict[str, Any], parts: Iterable[Part]) -> dict[str, Any]:
    """Values by name, with the first day, where there are two, before the last."""
    names = {part.concept: part.name for part in parts if part.name in values}
    ends = [names[key] for key in ("start_date", "end_date") if key in names]
    days = sorted(values[name] for name in ends)
    return {**values, **dict(zip(ends, days, strict=True))}


def _simple(concept: str, language: str, draw: random.Random) -> Any:
    made_of = concepts()[concept].made_of
    if "boolean" in made_of:
        return draw.random() < 0.5
    if "integer" in made_of:
        least, most, _ = made_of["integer"]
        return draw.randint(least, most)
    if "number" in made_of:
        least, most, _ = made_of["number"]
        number = round(draw.uniform(least, most), draw.choice((0, 1, 1, 2)))
        # A number without a fraction is written as such in most calls.
        return int(number) if number == int(number) and draw.random() < 0.8 else number
    if "enum" in made_of:
        return draw.choice(made_of["enum"])
    return _text(made_of["pool"], language, draw)


def _plain(kind: str, draw: random.Random) -> Any:
    """Of a parameter whose name is no word."""
    if kind == "boolean":
        return draw.random() < 0.5
    if kind == "integer":
        return draw.randint(1, 999)
    if kind == "number":
        return round(draw.uniform(0, 100), draw.choice((1, 2)))
    made = (
        _identifier,
        lambda d: d.choice(pools()["word"]),
        lambda d: f"{d.choice(pools()['word'])}_{d.randint(2, 99)}",
    )
    return draw.choice(made)(draw)


def _text(pool: str, language: str, draw: random.Random) -> str:
    if pool in _COMPOSED:
        return _COMPOSED[pool](draw)
    texts = pools()[pool]
    chosen: list[str] = texts if isinstance(texts, list) else texts[language]
    text = draw.choice(chosen)
    return (
        f"{text} {draw.randint(2, 999)}" if pool == "things" and _rarely(draw) else text
    )


def _rarely(draw: random.Random) -> bool:
    return draw.random() < 0.15


def _of(name: str, draw: random.Random) -> str:
    text: str = draw.choice(pools()[name])
    return text


def _date(draw: random.Random) -> str:
    return (
        f"{draw.randint(2019, 2031)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
    )


def _time(draw: random.Random) -> str:
    return f"{draw.randint(0, 23):02}:{draw.choice((0, 15, 20, 30, 45, 50)):02}"


def _person(draw: random.Random) -> str:
    return f"{_of('first', draw)} {_of('last', draw)}"


def _company(draw: random.Random) -> str:
    return f"{_of('company', draw)} {_of('kind', draw)}"


def _email(draw: random.Random) -> str:
    user = "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 7)))
    user = f"{_of('word', draw)}.{user}" if draw.random() < 0.5 else user
    ending = draw.choice(("org", "com", "net"))
    return f"{user}{draw.randint(1, 99)}@example.{ending}"


def _phone(draw: random.Random) -> str:
    return f"+{draw.randint(30, 99)}{draw.randint(10**7, 10**9)}"


def _title(draw: random.Random) -> str:
    return f"{_of('adjective', draw)} {_of('noun', draw)}".title()


def _file(draw: random.Random) -> str:
    folder = f"{_of('folders', draw)}/" if draw.random() < 0.7 else ""
    folder = f"/{folder}" if folder and draw.random() < 0.3 else folder
    name, number = _of("word", draw), draw.randint(1, 99)
    return f"{folder}{name}_{number}.{_of('endings', draw)}"


def _url(draw: random.Random) -> str:
    host = draw.choice(("example.org", "example.com", "www.example.net"))
    return f"https://{host}/{_of('word', draw)}/{draw.randint(1, 999)}"


def _identifier(draw: random.Random) -> str:
    letters = "".join(draw.choices(string.ascii_uppercase, k=draw.randint(1, 3)))
    form = draw.choice(("{}-{}", "{}{}", "{}_{}"))
    return form.format(letters, draw.randint(100, 99999))


def _street(draw: random.Random) -> str:
    """With its number before or behind: a text may begin as a number does."""
    street, number = _of("street", draw), str(draw.randint(1, 190))
    if draw.random() < 0.2:
        number += draw.choice("ABC")
    return f"{number} {street}" if draw.random() < 0.4 else f"{street} {number}"


def _postal_code(draw: random.Random) -> str:
    return str(draw.randint(10000, 99999))


def _expression(draw: random.Random) -> str:
    """A polynomial, as people type it."""
    first = f"{draw.randint(2, 9)}*x**{draw.randint(2, 4)}"
    return f"{first} {draw.choice('+-')} {draw.randint(2, 40)}{draw.choice(('*x', ''))}"


_COMPOSED: dict[str, Callable[[random.Random], str]] = {
    "date": _date,
    "time": _time,
    "people": _person,
    "companies": _company,
    "email": _email,
    "phone": _phone,
    "title": _title,
    "file": _file,
    "url": _url,
    "identifier": _identifier,
    "street": _street,
    "postal_code": _postal_code,
    "expression": _expression,
}
