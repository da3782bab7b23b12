"""Plain mappings -> typed frozen dataclasses, collecting every mistake instead of
stopping at the first.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from alia_ctx.errors import Problem

_INVALID = object()


def build[T](cls: type[T], raw: object, key: str, problems: list[Problem]) -> T | None:
    """Make a `cls` of `raw`; adds a problem for every unknown, missing, or wrongly typed
    key below `key`.

    Returns None where anything in this part is wrong. `raw` is never changed.
    """
    value = _convert(cls, raw, key, problems)
    return None if value is _INVALID else value


def _convert(kind: Any, raw: object, key: str, problems: list[Problem]) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, raw, key, problems)
    if origin in (Union, types.UnionType):
        return _convert_union(kind, raw, key, problems)
    if origin is Literal:
        return _convert_choice(kind, raw, key, problems)
    if origin in (list, tuple):
        return _convert_sequence(kind, raw, key, problems)
    if origin in (dict, Mapping) or (
        origin is not None and issubclass(origin, Mapping)
    ):
        return _convert_mapping(kind, raw, key, problems)
    return _convert_scalar(kind, raw, key, problems)


def _convert_dataclass(cls: Any, raw: object, key: str, problems: list[Problem]) -> Any:
    if not isinstance(raw, Mapping):
        return _wrong_type(key, raw, "a mapping", problems)
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    prefix = f"{key}." if key else ""
    good = True
    for name in raw:
        if name not in fields:
            good = False
            removed = getattr(cls, "REMOVED", {}).get(name)
            problems.append(
                Problem(
                    f"{prefix}{name}",
                    raw[name],
                    "is no longer a setting" if removed else "unknown key",
                    removed or _suggest(str(name), list(fields)),
                )
            )
    values = {}
    for name, entry in fields.items():
        if name in raw:
            values[name] = _convert(hints[name], raw[name], f"{prefix}{name}", problems)
            good &= values[name] is not _INVALID
        elif (
            entry.default is dataclasses.MISSING
            and entry.default_factory is dataclasses.MISSING
        ):
            good = False
            problems.append(
                Problem(f"{prefix}{name}", None, "is required", f"set {prefix}{name}")
            )
    return cls(**values) if good else _INVALID


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (
        f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}"
    )


def _convert_union(kind: Any, raw: object, key: str, problems: list[Problem]) -> Any:
    options = [option for option in get_args(kind) if option is not type(None)]
    if raw is None:
        if len(options) < len(get_args(kind)):
            return None
        return _wrong_type(key, raw, "a value", problems)
    attempts: list[list[Problem]] = []
    for option in options:
        found: list[Problem] = []
        value = _convert(option, raw, key, found)
        if value is not _INVALID:
            return value
        attempts.append(found)
    problems.extend(attempts[0])
    return _INVALID


def _convert_choice(kind: Any, raw: object, key: str, problems: list[Problem]) -> Any:
    choices = get_args(kind)
    if raw in choices and not isinstance(raw, bool):
        return raw
    known = ", ".join(map(str, choices))
    problems.append(Problem(key, raw, "not one of the choices", f"use one of {known}"))
    return _INVALID


def _convert_sequence(kind: Any, raw: object, key: str, problems: list[Problem]) -> Any:
    if not isinstance(raw, (list, tuple)):
        return _wrong_type(key, raw, "a list", problems)
    item = get_args(kind)[0]
    values = [
        _convert(item, entry, f"{key}[{i}]", problems) for i, entry in enumerate(raw)
    ]
    if any(value is _INVALID for value in values):
        return _INVALID
    return tuple(values) if get_origin(kind) is tuple else values


def _convert_mapping(kind: Any, raw: object, key: str, problems: list[Problem]) -> Any:
    if not isinstance(raw, Mapping):
        return _wrong_type(key, raw, "a mapping", problems)
    item = get_args(kind)[1]
    values = {
        str(name): _convert(item, entry, f"{key}.{name}", problems)
        for name, entry in raw.items()
    }
    return _INVALID if any(value is _INVALID for value in values.values()) else values


def _convert_scalar(kind: Any, raw: object, key: str, problems: list[Problem]) -> Any:
    if kind is Any or kind is object:
        return raw
    if kind is bool:
        return (
            raw
            if isinstance(raw, bool)
            else _wrong_type(key, raw, "true or false", problems)
        )
    if kind is int and not isinstance(raw, bool):
        if isinstance(raw, int):
            return raw
        if isinstance(raw, float) and raw.is_integer():
            return int(raw)
    if kind is float and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return float(raw)
    if kind is str and isinstance(raw, str):
        return raw
    names = {int: "a whole number", float: "a number", str: "a string"}
    return _wrong_type(key, raw, names.get(kind, str(kind)), problems)


def _wrong_type(key: str, raw: object, wanted: str, problems: list[Problem]) -> Any:
    got = "nothing" if raw is None else f"{type(raw).__name__}"
    problems.append(
        Problem(
            key or "(top level)", raw, f"must be {wanted}, not {got}", f"give {wanted}"
        )
    )
    return _INVALID
