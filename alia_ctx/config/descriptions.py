"""What each setting is, in words: descriptions.yaml beside this file, by dataclass."""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from alia_ctx.config.run import RunConfig

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Setting:
    """One setting, at its place.

    Args:
        key: dotted, with NAME for a name that a user gives, as in stages.NAME.context.
        owner: the dataclass that has it.
        hint: its type.
        default: its value where it is left out; MISSING where it is needed.
        text: what it is.
        unit: what its number counts; empty where it has none.
        example: a value, as YAML gives it.
    """

    key: str
    owner: type
    hint: Any
    default: Any
    text: str
    unit: str
    example: Any

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


@cache
def written() -> Mapping[str, Mapping[str, Any]]:
    """The file: class -> field -> text, unit, example."""
    file = resources.files("alia_ctx.config").joinpath("descriptions.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def fields_of(owner: Any, key: str = "") -> Iterator[Setting]:
    """The settings of a dataclass in their order, at the place `key`."""
    hints, texts = get_type_hints(owner), written()[owner.__name__]
    for entry in dataclasses.fields(owner):
        if not entry.init:
            continue
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        said = texts[entry.name]
        yield Setting(
            f"{key}.{entry.name}" if key else entry.name,
            owner,
            hints[entry.name],
            default,
            said["text"],
            said.get("unit", ""),
            said["example"],
        )


def all_settings(owner: Any = RunConfig, key: str = "") -> Iterator[Setting]:
    """Every setting below `key`, those inside others after them."""
    for setting in fields_of(owner, key):
        yield setting
        for inside, below in parts(setting.hint):
            yield from all_settings(inside, setting.key + below)


def parts(hint: Any) -> Iterator[tuple[Any, str]]:
    """The dataclasses inside a type, each with what comes between: `.NAME` in a mapping,
    `[]` in a list.
    """
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        yield hint, ""
    elif origin in (Union, types.UnionType):
        for option in get_args(hint):
            yield from parts(option)
    elif origin in (list, tuple):
        yield from ((inside, f"[]{b}") for inside, b in parts(get_args(hint)[0]))
    elif origin in (dict, Mapping):
        yield from ((inside, f".NAME{b}") for inside, b in parts(get_args(hint)[1]))


def setting_at(key: str) -> Setting | None:
    """The setting at a dotted key; None where there is no such setting."""
    owner: Any = RunConfig
    names = key.split(".")
    while names:
        name = names.pop(0)
        found = {s.name: s for s in fields_of(owner)}.get(name)
        if found is None:
            return None
        inside = next(parts(found.hint), None)
        if not names or inside is None:
            return found
        owner, between = inside
        if between.startswith("."):
            names.pop(0)
            if not names:
                return found
    return None


def type_words(hint: Any) -> str:
    """A type in words; that it may be left out is said by its default."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return "mapping"
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(a) for a in arguments if a is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(f"`{a}`" for a in arguments)
    if origin in (list, tuple):
        return f"list of {type_words(arguments[0])}"
    if origin in (dict, Mapping):
        return f"mapping of names to {type_words(arguments[1])}"
    return _WORDS[hint]


def as_yaml(value: Any) -> str:
    """A value on one line, as YAML reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {as_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w./~-]+", value) else json.dumps(value)
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"{value:.1e}"
    return json.dumps(value)
