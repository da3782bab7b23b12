"""RoPE as `config.json` describes it, for two major versions of transformers.

The facts behind it, from `modeling_rope_utils.py` of 4.57.6 and 5.23.0:

- 4.x takes the base from `rope_theta` and everything else from `rope_scaling`; it
  ignores `rope_parameters`.
- 5.x takes `rope_scaling` where it is set and else `rope_parameters`, and fills a
  missing base from `rope_theta`. So both forms may stand side by side as long as they
  say the same, which they do here.
- All read the base of their RoPE from `rope_theta`, at the top level (4.x) or inside the
  dict (5.x): two values there are two models, and stop an import.
- yarn and llama3 take a missing `original_max_position_embeddings` from
  `max_position_embeddings`. We always write it, because the latter grows with every
  stage.
- yarn's factor is read by 4.51 to 4.55 as `max_position_embeddings` over the original
  length, whatever `factor` says. An export therefore states factor x original length as
  `max_position_embeddings`, which every version reads alike; see `least_version`.
- dynamic (NTK) has no original length of its own: transformers takes
  `max_position_embeddings` for it. An export therefore writes the original length there,
  not the context of the stage. At a sequence as long as the context, the angles then
  equal those of training; shorter sequences get Hugging Face's rule: see `dynamic_note`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from alia_ctx.errors import Problem
from alia_ctx.hf.json_files import Fields, refusal
from alia_ctx.spec.rope import LONGEST, OPTIONAL_FIELDS, ROPE_TYPES, RopeSpec

# The field's type, by its name in both RopeSpec and Hugging Face's dict.
_FIELDS: dict[str, type] = {
    name: get_args(hint)[0]
    for name, hint in get_type_hints(RopeSpec).items()
    if name in OPTIONAL_FIELDS
}
_ORIGINAL = "original_max_position_embeddings"
_OTHER_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_FORMS = ("rope_scaling", "rope_parameters")
_KEEP_ONE = "keep the one that the model was trained with"


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
    """`max_position_embeddings`: the context, but for dynamic the original length and for
    yarn factor x original length (see the module's text).
    """
    original = rope.original_max_position_embeddings or context
    if ROPE_TYPES[rope.type].original_is_context:
        return original
    if ROPE_TYPES[rope.type].factor_is_ratio:
        reach = original * (rope.factor or 1.0)
        is_length = context <= reach <= LONGEST and reach == int(reach)
        return int(reach) if is_length else context
    return context


def least_version(rope: RopeSpec, context: int) -> str | None:
    """The oldest transformers that computes `rope` from what an export writes, or None
    where all from 4.51 on do.
    """
    if ROPE_TYPES[rope.type].factor_is_ratio:
        original = rope.original_max_position_embeddings or context
        if stated_length(rope, context) / original != rope.factor:
            return "4.56"
        if rope.truncate is False:
            return "4.55"
    return None


def dynamic_note(rope: RopeSpec, context: int) -> str | None:
    """What whoever serves a model of `dynamic` RoPE has to know, trained at `context`
    tokens: no two programs agree on its base. None for other types.

    transformers: `dynamic_frequency_update` in modeling_rope_utils.py. vLLM:
    DynamicNTKScalingRotaryEmbedding, whose class SGLang took over.
    """
    if not ROPE_TYPES[rope.type].original_is_context:
        return None
    original, factor = (
        rope.original_max_position_embeddings or context,
        rope.factor or 1,
    )
    trained, served = dynamic_bases(rope, context)
    return (
        f"dynamic RoPE: it is trained with one base, that of {trained:,} tokens. "
        + (
            "transformers takes the base of each text's own length: a text of fewer "
            "tokens it answers with angles that were never trained"
            if context > original
            else "transformers has that base too, up to there"
        )
        + f". SGLang, and vLLM before its pull request 41277 of 2026, have one base for "
        f"all texts, that of {original:,} x {factor:g} = {served:,} tokens, "
        + ("the one of training" if served == trained else "which was not trained")
        + "; what later vLLM has is not checked. For a model to be served take llama3 or "
        "yarn, which all of them compute alike"
    )


def dynamic_bases(rope: RopeSpec, context: int) -> tuple[int, int]:
    """The tokens whose base a `dynamic` RoPE was trained with at `context` tokens, and
    those whose base servers take for texts of any length.
    """
    original = rope.original_max_position_embeddings or context
    return max(context, original), round(original * (rope.factor or 1))


def read_rope(
    path: Path, values: Mapping[str, Any], context: int, head_dim: int
) -> RopeSpec:
    """The one RoPE that all descriptions in `values`, the document at `path`, agree on.

    CheckpointError names every key that is of the wrong type, that we lack, or that
    contradicts another.
    """
    problems: list[Problem] = []
    forms: dict[str, Mapping[str, Any]] = {}
    for name in _FORMS:
        form = values.get(name)
        if isinstance(form, Mapping) and form:
            forms[name] = form
        elif form is not None and not isinstance(form, Mapping):
            rule = 'is not an object; use {"rope_type": ...} or null'
            problems.append(Problem(name, repr(form), rule, _KEEP_ONE))
    thetas = _thetas(values, forms, problems)
    theta = thetas.get("rope_theta", 10000.0)  # for a form that has none of its own
    specs = {
        name: {
            "theta": thetas.get(f"{name}.rope_theta", theta),
            **_read_form(name, form, Fields(values, problems), context),
        }
        for name, form in (forms or {"": {}}).items()
    }
    if problems:
        raise refusal(path, problems)
    (first, rope), *others = ((name, RopeSpec(**spec)) for name, spec in specs.items())
    for name, other in others:
        if other != rope:
            rule = f"{first} gives {rope}, {name} gives {other}"
            problems.append(Problem(name, forms[name], rule, _KEEP_ONE))
    problems += rope.problems(first or "rope", context=1, head_dim=head_dim)
    if problems:
        raise refusal(path, problems)
    return rope


def _thetas(
    values: Mapping[str, Any],
    forms: Mapping[str, Mapping[str, Any]],
    problems: list[Problem],
) -> dict[str, float]:
    """Every base that the document states, by its place.

    transformers 4 reads the one at the top level, 5 the one in the dict, so they must
    agree. A null at the top level is what 5 writes where the dict has it.
    """
    thetas = {
        f"{name}.rope_theta": Fields(form, problems, f"{name}.").number("rope_theta")
        for name, form in forms.items()
        if "rope_theta" in form
    }
    if "rope_theta" in values and not (values["rope_theta"] is None and thetas):
        thetas["rope_theta"] = Fields(values, problems).number("rope_theta")
    if not problems and len(set(thetas.values())) > 1:
        stated = ", ".join(f"{place}={theta:.10g}" for place, theta in thetas.items())
        rule = "one model has one base"
        problems.append(Problem("rope_theta", stated, rule, _KEEP_ONE))
    return thetas


def _read_form(
    name: str, form: Mapping[str, Any], top: Fields, context: int
) -> dict[str, Any]:
    """One description's fields of RopeSpec but theta; what is wrong goes to `top.problems`."""
    problems = top.problems
    fields = Fields(form, problems, f"{name}.")
    types = {key: form[key] for key in ("rope_type", "type") if key in form}
    rope_type = next(iter(types.values()), "default")
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        known = f"supported are {', '.join(ROPE_TYPES)}"
        rule = "is not supported"
        problems.append(Problem(f"{name}.rope_type", repr(rope_type), rule, known))
        return {}
    if any(other != rope_type for other in types.values()):
        rule = f"contradicts {name}.rope_type={rope_type}"
        problems.append(Problem(f"{name}.type", repr(form["type"]), rule, _KEEP_ONE))
    surplus = [key for key in form if key not in (*_FIELDS, *_OTHER_KEYS)]
    if form.get("partial_rotary_factor") not in (None, 1, 1.0):
        surplus.append("partial_rotary_factor")
    remedy = "alia-ctx has full rotary embeddings; use a model without it"
    for key in surplus:
        value = repr(form[key])
        problems.append(Problem(f"{name}.{key}", value, "is not supported", remedy))
    readers: dict[type, Callable[[str], Any]] = {
        float: fields.number,
        int: fields.integer,
        bool: fields.flag,
    }
    read = {
        key: readers[field_type](key)
        for key, field_type in _FIELDS.items()
        if form.get(key) is not None
    }
    read |= _original_length(name, rope_type, read, top, context)
    if ROPE_TYPES[rope_type].factor_is_ratio:
        read.setdefault("factor", context / read[_ORIGINAL])
    return {"type": rope_type, **read}


def _original_length(
    name: str,
    rope_type: str,
    read: Mapping[str, Any],
    top: Fields,
    context: int,
) -> dict[str, int]:
    """The original length as transformers resolves it;

    dynamic knows only `max_position_embeddings`.
    """
    definition, problems = ROPE_TYPES[rope_type], top.problems
    inner = read.get(_ORIGINAL)
    if _ORIGINAL not in definition.needs:
        return {}
    if definition.original_is_context:
        if inner is not None and inner != context:
            rule = f"transformers takes max_position_embeddings={context} for it"
            problems.append(Problem(f"{name}.{_ORIGINAL}", inner, rule, _KEEP_ONE))
        return {_ORIGINAL: context}
    outer = top.integer(_ORIGINAL) if top.values.get(_ORIGINAL) is not None else None
    if inner is not None and outer is not None and inner != outer:
        rule = (
            f"contradicts {name}.{_ORIGINAL}={inner}; transformers 4 reads the inner "
            "one and 5 the outer"
        )
        problems.append(Problem(_ORIGINAL, outer, rule, _KEEP_ONE))
    return {_ORIGINAL: inner or outer or context}
