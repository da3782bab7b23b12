"""Plain mappings -> typed frozen dataclasses, collecting every mistake instead of
stopping at the first.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from alia_ctx.errors import Problems

_INVALID: Any = object()
INT64 = 2**63 - 1
FP32 = 3.4028234663852886e38
_BINARY = re.compile(r"([0-9]{1,9})([kKmM])")


def build[T](cls: type[T], raw: object, key: str, problems: Problems) -> T | None:
    """Make a `cls` of `raw`; adds a problem for every unknown, missing, or wrongly typed
    key below `key`.

    Returns None where anything in this part is wrong. `raw` is never changed.
    """
    before = len(problems)
    value = _convert(cls, raw, key, problems)
    return None if _spoiled(value) or len(problems) > before else value


def build_parts(cls: Any, raw: object, problems: Problems) -> dict[str, Any]:
    """The fields of `cls` that could be made of `raw`, by name; of a mapping, the entries
    that could. Problems are added as by `build`.

    Where none were added, `cls(**parts)` is what `build` returns.
    """
    values = _fields(cls, raw, "", problems)
    parts = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = {k: v for k, v in value.items() if v is not _INVALID}
        if value is not _INVALID:
            parts[name] = value
    return parts


def _convert(expected: Any, raw: object, key: str, problems: Problems) -> Any:
    """`raw` as the type `expected`, or _INVALID."""
    origin = get_origin(expected)
    if dataclasses.is_dataclass(expected):
        values = _fields(expected, raw, key, problems)
        return _INVALID if _spoiled(values) else expected(**values)  # type: ignore[operator]
    if origin in (Union, types.UnionType):
        return _convert_union(expected, raw, key, problems)
    if origin is Literal:
        return _convert_choice(expected, raw, key, problems)
    if origin in (list, tuple):
        return _convert_sequence(expected, raw, key, problems)
    if origin in (dict, Mapping):
        return _entries(expected, raw, key, problems)
    return _convert_scalar(expected, raw, key, problems)


def _spoiled(value: Any) -> bool:
    """Whether a value, or an entry of a mapping or list, could not be converted."""
    if isinstance(value, Mapping):
        return any(_spoiled(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return any(_spoiled(entry) for entry in value)
    return value is _INVALID


def _fields(cls: Any, raw: object, key: str, problems: Problems) -> dict[str, Any]:
    """Values of the fields of `cls` that `raw` gives; _INVALID where one is wrong or lacks.

    An unknown key is a problem, and left out: what the others break can be told still.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    if not isinstance(raw, Mapping):
        return dict.fromkeys(fields, _wrong_type(key, raw, "a mapping", problems))
    hints = _hints(cls)
    prefix = f"{key}." if key else ""
    values: dict[str, Any] = {}
    for name in raw:
        if name not in fields:
            removed = getattr(cls, "REMOVED", {}).get(name)
            rule = "is no longer a setting" if removed else "unknown key"
            remedy = removed or _suggest(str(name), list(fields))
            problems.add(f"{prefix}{name}", raw[name], rule, remedy)
    for name, entry in fields.items():
        if name in raw:
            values[name] = _convert(hints[name], raw[name], f"{prefix}{name}", problems)
        elif (
            entry.default is dataclasses.MISSING
            and entry.default_factory is dataclasses.MISSING
        ):
            at = f"{prefix}{name}"
            problems.add(at, None, "is required", f"set {at}")
            values[name] = _INVALID
    return values


@functools.cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return types.MappingProxyType(get_type_hints(cls))


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (
        f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}"
    )


def _convert_union(expected: Any, raw: object, key: str, problems: Problems) -> Any:
    options = [option for option in get_args(expected) if option is not type(None)]
    if raw is None:
        if len(options) < len(get_args(expected)):
            return None
        return _wrong_type(key, raw, "a value", problems)
    attempts: list[tuple[Any, Problems]] = []
    for option in options:
        attempt = Problems()
        value = _convert(option, raw, key, attempt)
        if not _spoiled(value) and not attempt:
            return value
        attempts.append((value, attempt))
    value, attempt = attempts[0]
    problems.extend(attempt)
    return value if len(options) == 1 else _INVALID


def _convert_choice(expected: Any, raw: object, key: str, problems: Problems) -> Any:
    choices = get_args(expected)
    if raw in choices and not isinstance(raw, bool):
        return raw
    known = ", ".join(map(str, choices))
    problems.add(key, raw, "not one of the choices", f"use one of {known}")
    return _INVALID


def _convert_sequence(expected: Any, raw: object, key: str, problems: Problems) -> Any:
    if not isinstance(raw, (list, tuple)):
        return _wrong_type(key, raw, "a list", problems)
    item = get_args(expected)[0]
    values = [
        _convert(item, entry, f"{key}[{i}]", problems) for i, entry in enumerate(raw)
    ]
    return tuple(values) if get_origin(expected) is tuple else values


def _entries(expected: Any, raw: object, key: str, problems: Problems) -> Any:
    """Entries of a mapping, _INVALID where one is wrong."""
    if not isinstance(raw, Mapping):
        return _wrong_type(key, raw, "a mapping", problems)
    item = get_args(expected)[1]
    return {
        str(name): _INVALID
        if _convert_text(str(name), key, problems) is _INVALID
        else _convert(item, entry, f"{key}.{name}", problems)
        for name, entry in raw.items()
    }


def _convert_scalar(expected: Any, raw: object, key: str, problems: Problems) -> Any:
    if expected is Any or expected is object:
        return raw
    if expected is bool:
        return (
            raw
            if isinstance(raw, bool)
            else _wrong_type(key, raw, "true or false", problems)
        )
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        if expected is float or (expected is int and raw == raw // 1):
            return _convert_number(expected, raw, key, problems)
        if expected is str and isinstance(raw, int):
            return str(raw)  # `init_from: 4096` means the stage of that name
    if expected is str and isinstance(raw, str):
        return _convert_text(raw, key, problems)
    names = {int: "a whole number", float: "a number", str: "a string"}
    return _wrong_type(key, raw, names.get(expected, str(expected)), problems)


def _convert_text(raw: str, key: str, problems: Problems) -> Any:
    """A string without NUL, at which the file system's calls raise instead of answering."""
    is_text = "\0" not in raw
    problems.need(is_text, key, repr(raw), "holds a NUL character", "take it out")
    return raw if is_text else _INVALID


def _convert_number(
    expected: Any, raw: int | float, key: str, problems: Problems
) -> Any:
    """A number that the engine can hold: whole ones in 64 bits, others in fp32.

    No setting means anything as NaN or infinity, and each comparison with NaN is false,
    so that rules written as `if value < least` would let it pass.
    """
    limit, rule = (INT64, "2^63") if expected is int else (FP32, "3.4e38, as fp32 ends")
    if not -limit <= raw <= limit:
        remedy = "give a finite number"
        problems.add(key, raw, f"must be a number within +-{rule}", remedy)
        return _INVALID
    return expected(raw)


def _wrong_type(key: str, raw: object, expected: str, problems: Problems) -> Any:
    got = "nothing" if raw is None else f"{type(raw).__name__}"
    rule = f"must be {expected}, not {got}"
    remedy = f"give {expected}"
    if isinstance(raw, str) and (binary := _BINARY.fullmatch(raw)):
        number = int(binary[1]) << (10 if binary[2] in "kK" else 20)
        remedy = f"write {number}; {raw} is for the command line's --context"
    if expected == "a string" and raw is not None and not isinstance(raw, (list, dict)):
        remedy = f"put it in quotes: '{raw}'"
    problems.add(key or "(top level)", raw, rule, remedy)
    return _INVALID
