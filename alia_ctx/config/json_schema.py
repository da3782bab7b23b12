"""The configuration as a JSON schema (draft 2020-12), for editors: made of the dataclasses,
as `schema.py` reads them.

A file may leave to the files that it includes, or to `stage_defaults`, what a whole
configuration needs. So there are two of each object: one that needs what the dataclass
needs, and a part, in which everything may be left out or be null.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import alia_ctx
from alia_ctx.config.base import FROM_CHECKPOINT
from alia_ctx.config.descriptions import Setting, fields_of
from alia_ctx.config.layouts import AUTO
from alia_ctx.config.run import RunConfig, StageConfig
from alia_ctx.config.schema import FP32, INT64
from alia_ctx.data.packing.policies import POLICIES
from alia_ctx.files import read_object
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import ROPE_TYPES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_FILE = "alia-ctx.schema.json"
_ID = "urn:alia-ctx:configuration"
_NULL = {"type": "null"}
# `${...}` stands for a value of any type until the file is put together.
_INTERPOLATION = {"type": "string", "pattern": r"\$\{.+\}"}
_SCALARS: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": -INT64, "maximum": INT64},
    float: {"type": "number", "minimum": -FP32, "maximum": FP32},
    # A name may look like a number or a word of YAML: `init_from: 4096`, `init_from: yes`.
    str: {"type": ["string", "number", "boolean"], "pattern": r"^[^\u0000]*$"},
}
# Words that are typed as text, as rules and not types know them.
_WORDS = {
    ("RopeSpec", "type"): list(ROPE_TYPES),
    ("PackSpec", "policy"): list(POLICIES),
}
# Words in place of a mapping, and keys that are filled in where they are left out.
_IN_PLACE: dict[tuple[str, str], dict[str, Any]] = {
    ("StageConfig", "layout"): {"const": AUTO},
    ("RunConfig", "model"): {"enum": [FROM_CHECKPOINT, None]},
}


def run_schema(*, partial: bool = False) -> dict[str, Any]:
    """The schema of a file. A file with `include:` or `stage_defaults:` may leave out what
    others give; with `partial` every file may, as those that are included.
    """
    definitions: dict[str, Any] = {}
    part = _reference(RunConfig, definitions, partial=True)
    extra = {
        "include": {
            "description": "files that this one is laid over, by paths relative to it",
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
            ],
        },
        "stage_defaults": {
            "description": "keys of a stage that every stage has, unless it says otherwise",
            **_reference(StageConfig, definitions, partial=True),
        },
    }
    definitions[_name(RunConfig, partial=True)]["properties"] |= extra
    head = {
        "$schema": DIALECT,
        "$id": _ID,
        "title": "alia-ctx configuration",
        "$comment": f"alia-ctx {alia_ctx.__version__}, printed by `alia-ctx schema`",
    }
    if partial:
        return {**head, **part, "$defs": definitions}
    whole = _reference(RunConfig, definitions, partial=False)
    elsewhere = {"anyOf": [{"required": [name]} for name in extra]}
    body = {"if": elsewhere, "then": part, "else": whole}
    return {**head, "type": "object", **body, "$defs": definitions}


def is_ours(path: Path) -> bool:
    """Whether a file is such a schema, of whatever release."""
    try:
        return read_object(path).get("$id") == _ID
    except (OSError, ValueError):
        return False


def _name(owner: type, *, partial: bool) -> str:
    return f"{owner.__name__}-part" if partial else owner.__name__


def _reference(
    owner: Any, definitions: dict[str, Any], *, partial: bool
) -> dict[str, Any]:
    # What is left out of a model is that of a checkpoint.
    partial = partial or owner is ModelSpec
    name = _name(owner, partial=partial)
    if name not in definitions:
        definitions[name] = {}
        settings = list(fields_of(owner))
        made: dict[str, Any] = {
            "type": "object",
            "properties": {
                s.name: _property(s, definitions, partial=partial) for s in settings
            },
            "additionalProperties": False,
        }
        needed = [s.name for s in settings if s.required and not _may_lack(s)]
        if needed and not partial:
            made["required"] = needed
        definitions[name] |= made
    return {"$ref": f"#/$defs/{name}"}


def _may_lack(setting: Setting) -> bool:
    return (setting.owner.__name__, setting.name) == ("RunConfig", "model")


def _property(
    setting: Setting, definitions: dict[str, Any], *, partial: bool
) -> dict[str, Any]:
    place = (setting.owner.__name__, setting.name)
    unit = f" ({setting.unit})" if setting.unit else ""
    made: dict[str, Any] = {"description": f"{setting.text}{unit}"}
    if place in _WORDS:
        typed: dict[str, Any] = {"enum": _WORDS[place]}
    else:
        typed = _typed(setting.hint, definitions, partial=partial)
    options = [typed]
    if place in _IN_PLACE:
        options.append(_IN_PLACE[place])
    if partial:
        options.append(_NULL)
    made |= typed if len(options) == 1 else {"anyOf": options}
    if not setting.required:
        made["default"] = plain(setting.default)
    return {**made, "examples": [setting.example]}


def _typed(hint: Any, definitions: dict[str, Any], *, partial: bool) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _reference(hint, definitions, partial=partial)
    if origin in (Union, types.UnionType):
        options = [
            _NULL
            if option is type(None)
            else _typed(option, definitions, partial=partial)
            for option in arguments
        ]
        return {"anyOf": options}
    if origin is Literal:
        return {"anyOf": [{"enum": list(arguments)}, _INTERPOLATION]}
    if origin in (list, tuple):
        inside = _typed(arguments[0], definitions, partial=partial)
        return {"type": "array", "items": inside}
    if origin in (dict, Mapping):
        inside = _typed(arguments[1], definitions, partial=partial)
        # Null takes an entry out again that a file below has.
        entry = {"anyOf": [inside, _NULL]} if partial else inside
        return {"type": "object", "additionalProperties": entry}
    if hint is str:
        return _SCALARS[str]
    return {"anyOf": [_SCALARS[hint], _INTERPOLATION]}


def plain(value: Any) -> Any:
    """A default as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
