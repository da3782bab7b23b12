"""Whether JSON in a prompt defines functions: prompts list products and persons too, and
all of these have names.
"""

from __future__ import annotations

import re
from typing import Any

# What sets call the schema of a function's parameters.
PARAMETER_KEYS = ("parameters", "input_schema", "inputSchema")
_INTRODUCTION = re.compile(
    r"(?:functions in JSON format|access to the following functions)[^\[\]{}]*\Z",
    re.IGNORECASE,
)


def name_of(value: Any) -> str | None:
    """The name of an object that may be a function, flat or nested as OpenAI has it; None
    where it has none.
    """
    name = _function(value).get("name")
    return name if isinstance(name, str) and name.strip() else None


def parameters_of(value: Any) -> list[dict[str, Any]]:
    """The objects that something with a name has as its parameters; [] without a name."""
    if name_of(value) is None:
        return []
    given = [_function(value).get(key) for key in PARAMETER_KEYS]
    return [parameters for parameters in given if isinstance(parameters, dict)]


def is_definition(value: Any) -> bool:
    """Whether an object defines a function: a name, and parameters that are a schema, or
    each of which is described, or of which there are none.
    """
    return any(
        isinstance(parameters.get("properties"), dict)
        or parameters.get("type") in ("object", "dict")
        or all(map(_is_described, parameters.values()))
        for parameters in parameters_of(value)
    )


def introduces_functions(text: str) -> bool:
    """Whether a prompt ends with the words that the public sets put before their lists:
    what follows are functions, also those without parameters.
    """
    return _INTRODUCTION.search(text) is not None


def _function(value: Any) -> dict[str, Any]:
    nested = value.get("function") if isinstance(value, dict) else None
    function = nested if isinstance(nested, dict) else value
    return function if isinstance(function, dict) else {}


def _is_described(parameter: Any) -> bool:
    return isinstance(parameter, dict) and bool({"type", "description"} & {*parameter})
