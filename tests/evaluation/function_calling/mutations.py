"""Answers that a case accepts, written as a model would, and seeded changes of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

from alia_ctx.evaluation.function_calling.cases import Case

Written = list[tuple[str, dict[str, Any]]]


def right_answer(case: Case, rng: Random | None = None) -> Written:
    """Calls that the case accepts: the first value of each parameter, or with `rng` any,
    which may leave parameters out.
    """
    schemas = {f["name"]: f["parameters"]["properties"] for f in case.functions}
    required = {f["name"]: f["parameters"].get("required", ()) for f in case.functions}
    calls = []
    for accepted in case.accepted or ():
        ((name, parameters),) = accepted.items()
        # Cases with one function may call it otherwise in their answers.
        known = schemas.get(name) or next(iter(schemas.values()))
        arguments = {}
        for parameter, values in parameters.items():
            value = _chosen(values, rng)
            if value is _ABSENT and parameter in required.get(name, ()):
                value = ""  # nothing else is accepted, and left out it may not be
            if value is not _ABSENT and parameter in known:
                arguments[parameter] = _written(value, known[parameter], case.language)
        calls.append(
            (name if name in schemas else case.functions[0]["name"], arguments)
        )
    return calls


_ABSENT = object()


def _chosen(values: list[Any], rng: Random | None) -> Any:
    if rng is not None:
        value = rng.choice(values) if values else _ABSENT
    else:
        value = next((v for v in values if v != ""), _ABSENT)
    return _ABSENT if value == "" else _inside(value, rng)


def _inside(value: Any, rng: Random | None) -> Any:
    """Objects accept lists of values for each key."""
    if isinstance(value, dict):
        chosen = {
            key: _chosen(values, rng) if isinstance(values, list) else values
            for key, values in value.items()
        }
        return {key: v for key, v in chosen.items() if v is not _ABSENT and v != ""}
    if isinstance(value, list):
        return [
            _inside(item, rng) if isinstance(item, dict) else item for item in value
        ]
    return value


def _written(value: Any, schema: dict[str, Any], language: str) -> Any:
    if language == "python":
        return value
    items = (schema.get("items") or {}).get("type")
    write = _java if language == "java" else _javascript
    return write(value, schema["type"], items)


def _java(value: Any, kind: str, items: str | None = None) -> str:
    if isinstance(value, list):
        parts = ", ".join(_java(item, items or "any", None) for item in value)
        if items in ("String", "char"):
            parts = ", ".join(f'"{item}"' for item in value)
        if kind == "ArrayList":
            return (
                f"new ArrayList<>(Arrays.asList({parts}))"
                if value
                else ("new ArrayList<>()")
            )
        # The original keeps the quotes of the texts of an array.
        inside = ", ".join(map(str, value)) if items == "String" else parts
        return f"new Object[]{{{inside}}}"
    if isinstance(value, dict):
        puts = "".join(f'put("{k}", {_quoted(v)}); ' for k, v in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts}}}}}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and kind == "long":
        return f"{value}L"
    return str(value)


def _javascript(value: Any, kind: str, items: str | None = None) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


Change = Callable[[Any, Random], Any]


def _other_type(value: Any, rng: Random) -> Any:
    others: list[Any] = ["7", 7, 7.5, True, None, [], {}, [value], {"a": value}]
    others += [str(value), "", [str(value)], [7, "7"], [None], [{}], [[value]]]
    return copy.deepcopy(rng.choice(others))


def _text(value: Any, rng: Random) -> Any:
    """Case, blanks and punctuation of a text, wherever it is."""
    path = _leaf(value, rng)
    if path is None or not isinstance(path[-1], str):
        return value
    text = path[-1]
    at = rng.randrange(len(text) + 1)
    changed = rng.choice(
        [
            text.upper(),
            text.swapcase(),
            text.replace(" ", ""),
            f" {text} ",
            f"{text[:at]}{rng.choice(' ,./-_*^')}{text[at:]}",
            f"{text[:at]}{rng.choice('x!:é~')}{text[at:]}",
            text.replace("'", '"'),
            text.replace('"', "'"),
            f'"{text}"',
            f"'{text}'",
            text[:-1],
            f"{text}\n",
        ]
    )
    return _replaced(value, path[:-1], changed)


def _number(value: Any, rng: Random) -> Any:
    path = _leaf(value, rng)
    if path is None or isinstance(path[-1], bool | str) or path[-1] is None:
        return value
    number = path[-1]
    options = [number + 1, -number, float(number), number * 1.0000001, str(number)]
    options += [int(number), bool(number), number * 10]
    return _replaced(value, path[:-1], rng.choice(options))


def _order(value: Any, rng: Random) -> Any:
    if isinstance(value, list) and len(value) > 1:
        return rng.sample(value, len(value))
    if isinstance(value, dict):
        return dict(rng.sample(list(value.items()), len(value)))
    return value


def _size(value: Any, rng: Random) -> Any:
    """One element or key more, fewer, or twice."""
    value = copy.deepcopy(value)
    if isinstance(value, list):
        if value and rng.random() < 0.4:
            value.pop(rng.randrange(len(value)))
        else:
            value.insert(0, value[-1] if value and rng.random() < 0.5 else "extra")
    elif isinstance(value, dict):
        if value and rng.random() < 0.5:
            value.pop(rng.choice(list(value)))
        else:
            value["extra"] = rng.choice([1, "x", [1]])
    return value


def _nested(value: Any, rng: Random) -> Any:
    """Something of another type deep inside, or one level more."""
    path = _leaf(value, rng)
    if path is None:
        return value
    return _replaced(value, path[:-1], _other_type(path[-1], rng))


def _leaf(value: Any, rng: Random) -> tuple[Any, ...] | None:
    """Keys to a value that is no container, and it; None in empty containers."""
    keys: list[Any] = []
    while isinstance(value, list | dict):
        if not value:
            return None
        key = (
            rng.choice(list(value))
            if isinstance(value, dict)
            else rng.randrange(len(value))
        )
        keys.append(key)
        value = value[key]
    return (*keys, value)


def _replaced(value: Any, keys: tuple[Any, ...], new: Any) -> Any:
    if not keys:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = new
    return value


def _source(value: Any, rng: Random) -> Any:
    """Java and JavaScript source, and its near misses."""
    text = str(value)
    return rng.choice(
        [
            f"{text}L",
            f"{text}f",
            f"{text}n",
            f"{text}.0",
            f'"{text}"',
            f"new ArrayList<String>(Arrays.asList({text}))",
            f"new ArrayList<Integer>() {{{{ add({text}); add(2); }}}}",
            "new ArrayList<>()",
            f"new int[]{{{text}, 2}}",
            f'new HashMap<String, Object>() {{{{ put("a", {text}); }}}}',
            "new HashMap<>()",
            f"new Array({text}, 2)",
            f"[{text}]",
            f"[[{text}], [1, 'x']]",
            f"{{'a': {text}, \"b\": [1, true]}}",
            "{}",
            text.replace(", ", ","),
            text.replace('"', "'"),
            text.replace(" ", "  "),
            f"\n{text}",
        ]
    )


VALUES: dict[str, Change] = {
    "type": _other_type,
    "text": _text,
    "number": _number,
    "order": _order,
    "size": _size,
    "nested": _nested,
    "source": _source,
}
CALLS = ("missing", "extra", "renamed", "function", "calls", "shuffled", "accepted")


def mutated(case: Case, kind: str, rng: Random) -> Written | None:
    """The right answer with one change of a kind of `VALUES` or `CALLS`; None where that
    changes nothing, as the number of a call without numbers.
    """
    right = right_answer(case)
    calls = _mutated(case, kind, rng)
    same = json.dumps(calls) == json.dumps(right)
    return None if same and kind != "accepted" else calls


def _mutated(case: Case, kind: str, rng: Random) -> Written:
    calls = right_answer(case, rng if kind == "accepted" else None)
    calls = copy.deepcopy(calls)
    index = rng.randrange(len(calls))
    name, arguments = calls[index]
    if kind in VALUES:
        if arguments:
            parameter = rng.choice(list(arguments))
            arguments[parameter] = VALUES[kind](arguments[parameter], rng)
    elif kind == "missing" and arguments:
        del arguments[rng.choice(list(arguments))]
    elif kind == "extra":
        unused = [p for f in case.functions for p in f["parameters"]["properties"]]
        key = rng.choice([*unused, "extra"])
        arguments[key] = rng.choice(["x", 1, [], {}, None, "", True])
    elif kind == "renamed" and arguments:
        parameter = rng.choice(list(arguments))
        other = rng.choice([parameter.upper(), f"{parameter}_", f" {parameter}", "x"])
        arguments[other] = arguments.pop(parameter)
    elif kind == "function":
        names = [f["name"] for f in case.functions]
        other = rng.choice([*names, name.upper(), name.replace(".", "_"), "other"])
        calls[index] = (other, arguments)
    elif kind == "calls":
        which = rng.random()
        if which < 0.4:
            calls.append(copy.deepcopy(rng.choice(calls)))
        elif which < 0.7:
            del calls[index]
        else:
            calls[index] = copy.deepcopy(rng.choice(calls))
    elif kind == "shuffled":
        rng.shuffle(calls)
        calls = [(n, dict(rng.sample(list(a.items()), len(a)))) for n, a in calls]
    return calls
