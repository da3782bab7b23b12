"""Whether calls are those that a BFCL case accepts: the leaderboard's "AST" verdict.

A case accepts, for each parameter of each call, a list of values; "" among them says
that the parameter may be left out. Texts are compared without case, blanks and some
punctuation, at the top level of a value and one level below. The rules, their gaps
included, are those of `ast_checker` of `bfcl-eval` 2026.3.23; where that one stops
with an exception, a call is wrong here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alia_ctx.evaluation.function_calling import java_values, javascript_values

Language = Literal["python", "java", "javascript"]
Call = tuple[str, Mapping[str, Any]]  # name and arguments
Fit = Literal["typed", "variable"]

_PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
TYPES: dict[Language, dict[str, type]] = {
    "python": _PYTHON_TYPES,
    "java": java_values.TYPES,
    "javascript": javascript_values.TYPES,
}
_SOURCE_READERS: dict[Language, Callable[[str, str, str | None], Any]] = {
    "java": java_values.java_value,
    "javascript": javascript_values.javascript_value,
}
# Types whose elements have a type of their own, in all three languages.
WITH_ITEMS = ("array", "tuple", "Array", "ArrayList")
_IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right; if not, `reason` (a word to count by) and `detail`."""

    right: bool
    reason: str = ""
    detail: str = ""


RIGHT = Verdict(True)


def check_calls(
    functions: Sequence[Mapping[str, Any]],
    calls: Sequence[Call],
    accepted: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]],
    language: Language,
    *,
    rename: Callable[[str], str] = lambda name: name,
) -> Verdict:
    """The verdict on `calls`, in any order.

    Each accepted call takes the first call, in the order written, that fits it and is
    not taken; so does the benchmark. `functions` are as the case has them, under their
    own names; `rename` gives the names under which the model saw them.
    """
    if len(calls) != len(accepted):
        detail = f"{len(calls)} calls, {len(accepted)} expected"
        return Verdict(False, "wrong_count", detail)
    left = list(calls)
    for wanted in accepted:
        ((name, parameters),) = wanted.items()
        # A case with one function is judged by it, whatever the accepted call's name.
        function = next((f for f in functions if f["name"] == name), functions[0])
        wrong: list[Verdict] = []
        for index, call in enumerate(left):
            verdict = _check_call(function, call, parameters, language, rename)
            if verdict.right:
                del left[index]
                break
            wrong.append(verdict)
        else:  # the nearest miss says most
            of_this = (v for v in wrong if v.reason != "wrong_function")
            return next(of_this, wrong[0])
    return RIGHT


def _check_call(
    function: Mapping[str, Any],
    call: Call,
    accepted: Mapping[str, Sequence[Any]],
    language: Language,
    rename: Callable[[str], str],
) -> Verdict:
    name, arguments = call
    properties = function["parameters"]["properties"]
    if name != rename(function["name"]):
        return Verdict(False, "wrong_function", f"{name!r} is called")
    for parameter in function["parameters"].get("required", ()):
        if parameter not in arguments:
            return Verdict(False, "missing_required", f"{parameter!r} is missing")
    for parameter, value in arguments.items():
        if parameter not in properties or parameter not in accepted:
            return Verdict(False, "unexpected", f"{parameter!r} is not expected")
        verdict = _check_value(
            value, accepted[parameter], properties[parameter], language
        )
        if not verdict.right:
            shown = f"{parameter}={value!r}, expected one of {accepted[parameter]}"
            return Verdict(False, verdict.reason, shown)
    for parameter, values in accepted.items():
        if parameter not in arguments and "" not in values:
            return Verdict(False, "missing_optional", f"{parameter!r} is missing")
    return RIGHT


def _check_value(
    value: Any, accepted: Sequence[Any], schema: Mapping[str, Any], language: Language
) -> Verdict:
    kind, types = schema["type"], TYPES[language]
    items = schema["items"]["type"] if kind in WITH_ITEMS else None
    expected = types[kind]
    inner = types[items] if items is not None else None
    if language in _SOURCE_READERS:
        if type(value) is not str:
            return Verdict(False, "wrong_type")
        value = _SOURCE_READERS[language](value, kind, items)
    elif kind == "float" and type(value) is int:
        value = _as_float(value)
    fit = _fit(value, accepted, expected, inner)
    if fit is None:
        return Verdict(False, "wrong_type")
    equal = _comparison(expected, inner) if fit == "typed" else _same
    return RIGHT if equal(value, accepted) else Verdict(False, "wrong_value")


def _as_float(value: int) -> Any:
    try:
        return float(value)
    except OverflowError:
        return value  # and so of the wrong type


def _fit(
    value: Any, accepted: Sequence[Any], expected: type, inner: type | None
) -> Fit | None:
    """Whether a value has its parameter's type, or (`variable`) that of the accepted
    values: the name of a variable may stand for a value. None for neither.
    """
    kind = next((type(option) for option in accepted if option != ""), None)
    items: Any = value
    if type(value) is expected:
        if inner is not None and not any(
            not isinstance(option, list)
            or all(_fit(item, option, inner, None) for item in items)
            for option in accepted
        ):
            return None
        return "typed" if kind in (None, expected) else "variable"
    return "variable" if kind is not None and type(value) is kind else None


def _comparison(
    expected: type, inner: type | None
) -> Callable[[Any, Sequence[Any]], bool]:
    if expected is dict:
        return _same_mapping
    if expected is list:
        return _same_mappings if inner is dict else _same_list
    return _same_text if expected is str else _same


def _same(value: Any, accepted: Sequence[Any]) -> bool:
    return value in accepted


def normalised(text: str) -> str:
    """A text without blanks, `,./-_*^` and case, with double quotes for single ones."""
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _plain(value: Any) -> Any:
    return normalised(value) if type(value) is str else value


def _same_text(value: str, accepted: Sequence[Any]) -> bool:
    return normalised(value) in [
        normalised(option) for option in accepted if type(option) is str
    ]


def _same_list(value: Sequence[Any], accepted: Sequence[Any]) -> bool:
    """ "" among the accepted is an empty list."""
    options = [option for option in accepted if isinstance(option, list | str)]
    return [_plain(item) for item in value] in [
        [_plain(item) for item in option] for option in options
    ]


def _same_mapping(value: Any, accepted: Sequence[Any]) -> bool:
    return isinstance(value, dict) and any(
        isinstance(option, dict)
        and all(
            key in option and _plain(item) in [_plain(other) for other in option[key]]
            for key, item in value.items()
        )
        and all(key in value or "" in values for key, values in option.items())
        for option in accepted
    )


def _same_mappings(value: Sequence[Any], accepted: Sequence[Any]) -> bool:
    return any(
        len(value) == len(option)
        and all(
            _same_mapping(item, [other])
            for item, other in zip(value, option, strict=True)
        )
        for option in accepted
        if isinstance(option, list | str)
    )
