"""RoPE as `config.json` describes it, for two major versions of transformers.

The facts behind it, from `modeling_rope_utils.py` of 4.57.6 and 5.23.0:

- 4.x takes the base from `rope_theta` and everything else from `rope_scaling`; it
  ignores `rope_parameters`.
- 5.x takes `rope_scaling` where it is set and else `rope_parameters`, and fills a
  missing base from `rope_theta`. So both forms may stand side by side as long as they
  say the same, which they do here.
- yarn and llama3 take a missing `original_max_position_embeddings` from
  `max_position_embeddings`. We always write it, because the latter grows with every
  stage.
- dynamic (NTK) has no original length of its own: transformers takes
  `max_position_embeddings` for it. An export therefore writes the original length there,
  not the context of the stage. At a sequence as long as the context, the angles then
  equal those of training; shorter sequences get Hugging Face's rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from alia_ctx.errors import CheckpointError
from alia_ctx.spec.rope import OPTIONAL_FIELDS, ROPE_TYPES, RopeSpec

# The field's type, by its name in both RopeSpec and Hugging Face's dict.
_FIELDS: dict[str, type] = {
    name: get_args(hint)[0]
    for name, hint in get_type_hints(RopeSpec).items()
    if name in OPTIONAL_FIELDS
}
_ORIGINAL = "original_max_position_embeddings"
_REMEDY = "alia-ctx has full rotary embeddings only; use a model without it"
_OTHER_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def rope_parameters(rope: RopeSpec) -> dict[str, Any]:
    """`rope` as Hugging Face's dict, base excluded;

    floats are floats because transformers 4 checks the type.
    """
    parameters: dict[str, Any] = {"rope_type": rope.type}
    for name in rope.used_fields():
        if name == _ORIGINAL and ROPE_TYPES[rope.type].original_is_context:
            continue
        if (value := getattr(rope, name)) is not None:
            parameters[name] = _FIELDS[name](value)
    return parameters


def stated_length(rope: RopeSpec, context: int) -> int:
    """`max_position_embeddings`:

    the context, but for dynamic the original length (see the module's text).
    """
    if ROPE_TYPES[rope.type].original_is_context:
        return rope.original_max_position_embeddings or context
    return context


def read_rope(path: Path, values: Mapping[str, Any], context: int) -> RopeSpec:
    """The one RoPE that all given descriptions agree on."""
    specs = {
        key: _rope_from(path, key, values[key], values, context)
        for key in ("rope_scaling", "rope_parameters")
        if values.get(key)
    } or {"rope_theta": _rope_from(path, "rope_theta", {}, values, context)}
    (first, spec), *others = specs.items()
    for key, other in others:
        if other != spec:
            raise CheckpointError(
                f"{path}: {first} gives {spec}, {key} gives {other}; keep the one that "
                "the model was trained with"
            )
    return spec


def _rope_from(
    path: Path, key: str, given: Any, values: Mapping[str, Any], context: int
) -> RopeSpec:
    if not isinstance(given, Mapping):
        raise CheckpointError(
            f'{path}: {key}={given!r} is not an object; use {{"rope_type": ...}} or null'
        )
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise CheckpointError(
            f"{path}: {key}.rope_type={rope_type!r} is not supported; supported are "
            f"{', '.join(ROPE_TYPES)}"
        )
    surplus = [name for name in given if name not in (*_FIELDS, *_OTHER_KEYS)]
    if surplus or given.get("partial_rotary_factor") not in (None, 1, 1.0):
        name = surplus[0] if surplus else "partial_rotary_factor"
        raise CheckpointError(
            f"{path}: {key}.{name}={given[name]!r} is not supported; {_REMEDY}"
        )
    fields = {name: given[name] for name in _FIELDS if given.get(name) is not None}
    for name, value in [("rope_theta", given.get("rope_theta")), *fields.items()]:
        _check_number(path, f"{key}.{name}", name, value)
    fields |= _original_length(path, key, rope_type, fields, values, context)
    if rope_type == "yarn" and "factor" not in fields:
        fields["factor"] = context / fields["original_max_position_embeddings"]
    theta = given.get("rope_theta", values.get("rope_theta", 10000.0))
    _check_number(path, f"{key}.rope_theta", "rope_theta", theta)
    typed = {name: _FIELDS[name](value) for name, value in fields.items()}
    return RopeSpec(type=rope_type, theta=float(theta), **typed)


def _check_number(path: Path, key: str, name: str, value: Any) -> None:
    field_type = _FIELDS.get(name, float)
    accepted = (int, float) if field_type is float else (field_type,)
    if value is not None and type(value) not in accepted:
        names = " or ".join(t.__name__ for t in accepted)
        raise CheckpointError(f"{path}: {key}={value!r} must be {names}")


def _original_length(
    path: Path,
    key: str,
    rope_type: str,
    fields: Mapping[str, Any],
    values: Mapping[str, Any],
    context: int,
) -> dict[str, int]:
    """The original length as transformers resolves it;

    dynamic knows only `max_position_embeddings`.
    """
    definition = ROPE_TYPES[rope_type]
    if definition.original_is_context:
        return {_ORIGINAL: context}
    if _ORIGINAL not in definition.needs:
        return {}
    inner, outer = (
        fields.get("original_max_position_embeddings"),
        values.get("original_max_position_embeddings"),
    )
    if inner is not None and outer is not None and inner != outer:
        raise CheckpointError(
            f"{path}: original_max_position_embeddings={outer} contradicts "
            f"{key}.original_max_position_embeddings="
            f"{inner}; transformers 4 reads the inner one and 5 the outer: keep the "
            "one that the model was trained with"
        )
    return {_ORIGINAL: inner or outer or context}
