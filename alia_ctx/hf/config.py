"""Hugging Face's `config.json` to and from our `ModelSpec` and `RopeSpec`.

Reading is strict: what we cannot compute is refused by name, never ignored. Writing
produces one file that transformers 4 and 5 both read as the same model. The facts
behind it, from `modeling_rope_utils.py` of 4.57.6 and 5.23.0:

- 4.x takes the base from `rope_theta` and everything else from `rope_scaling`; it
  ignores `rope_parameters`.
- 5.x takes `rope_scaling` where it is set and else `rope_parameters`, and fills a missing base from
  `rope_theta`. So both forms may stand side by side as long as they say the same, which
  they do here.
- yarn and llama3 take a missing `original_max_position_embeddings` from
  `max_position_embeddings`. We always
  write it, because the latter grows with every stage.
- dynamic (NTK) has no original length of its own: transformers takes
  `max_position_embeddings` for it. An
  export therefore writes the original length there, not the context of the stage. At a
  sequence as long as the context, the angles then equal those of training; shorter
  sequences get Hugging Face's rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alia_ctx.errors import CheckpointError, Problem
from alia_ctx.hf.families import FAMILIES, Family
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

CONFIG = "config.json"
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
_ROPE_NUMBERS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)
_ROPE_KEYS = ("original_max_position_embeddings", "truncate", *_ROPE_NUMBERS)
_ROPE_NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_HAS_ORIGINAL = ("yarn", "llama3")
# Keys that change the computation in a way we do not have, and the values at which they do not.
_INERT: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": (None, "silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "attention_dropout": (0, 0.0, None),
    "quantization_config": (None,),
    "auto_map": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (1, 1.0, None),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "layer_norm_eps": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}
_REMEDY = "alia-ctx computes full causal attention with RoPE and SwiGLU; use a model without it"


def read_config(hf_dir: Path) -> tuple[ModelSpec, RopeSpec, int]:
    """Model, RoPE and `max_position_embeddings` of `hf_dir/config.json`.

    Raises CheckpointError naming the file, the keys and their values: not JSON, an
    unknown `model_type`, a missing size, two RoPE descriptions that differ, or anything
    that we cannot express.
    """
    path = Path(hf_dir) / CONFIG
    config = load_json(path)
    family = _family(path, config)
    values = {**family.absent, **config}
    found = _unsupported(values, family) + _missing(values)
    if found:
        raise _refusal(path, found)
    context = int(values["max_position_embeddings"])
    model = _model(path, values, family)
    rope = _rope(path, values, context)
    found = model.problems("config") + rope.problems("rope_parameters", context=1)
    if found:
        raise _refusal(path, found)
    return model, rope, context


def write_config(
    model: ModelSpec,
    rope: RopeSpec,
    context: int,
    dtype: torch.dtype,
    original: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `config.json` of `model` with `rope` for sequences of `context` tokens,
    weights in `dtype`.

    Keys of `original` that we do not set (special tokens, library version, ...) are
    kept as they are.
    """
    family = FAMILIES[model.architecture]
    config = {
        k: v
        for k, v in (original or {}).items()
        if k not in ("rope_scaling", "rope_parameters")
    }
    parameters = rope_parameters(rope)
    kind = str(dtype).removeprefix("torch.")
    config |= {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        **{name: getattr(model, name) for name in _SIZES},
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.rms_norm_eps,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": model.tie_word_embeddings,
        "max_position_embeddings": stated_length(rope, context),
        "rope_theta": float(rope.theta),
        "rope_scaling": None if rope.type == "default" else parameters,
        "rope_parameters": {"rope_theta": float(rope.theta), **parameters},
        "torch_dtype": kind,
        "dtype": kind,
        **family.fixed,
    }
    return config


def rope_parameters(rope: RopeSpec) -> dict[str, Any]:
    """`rope` as Hugging Face's dict, base excluded;

    floats are floats because transformers 4 checks the type.
    """
    parameters: dict[str, Any] = {"rope_type": rope.type}
    for name in _ROPE_KEYS:
        value = getattr(rope, name)
        if value is None or (
            rope.type == "dynamic" and name == "original_max_position_embeddings"
        ):
            continue
        parameters[name] = float(value) if name in _ROPE_NUMBERS else value
    return parameters


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError where it is missing or is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: there is no such file; give a directory saved by `save_pretrained`"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}); copy it again from its source"
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{path}: holds {type(document).__name__} instead of a JSON object"
        )
    return document


def _refusal(path: Path, found: list[Problem]) -> CheckpointError:
    return CheckpointError(
        "\n".join(
            [f"{path}: this model cannot be expressed", *(f"  {p}" for p in found)]
        )
    )


def _family(path: Path, config: Mapping[str, Any]) -> Family:
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise CheckpointError(
            f"{path}: model_type={config.get('model_type')!r} is not supported; "
            f"supported are {', '.join(FAMILIES)}"
        )
    named = config.get("architectures") or [family.class_name]
    if named != [family.class_name]:
        raise CheckpointError(
            f"{path}: architectures={named} is not supported; {family.model_type} "
            f"converts as [{family.class_name!r}]"
        )
    return family


def _unsupported(values: Mapping[str, Any], family: Family) -> list[Problem]:
    found = [
        Problem(key, values[key], "is not supported", _REMEDY)
        for key, inert in _INERT.items()
        if key in values and values[key] not in inert
    ]
    # Qwen configurations name a window that is off until use_sliding_window turns it on.
    window = values.get("sliding_window")
    if window is not None and "use_sliding_window" not in family.fixed:
        found.append(
            Problem(
                "sliding_window",
                window,
                "sliding-window attention is not supported",
                "set it to null only if the model was trained with full attention",
            )
        )
    kinds = set(values.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        found.append(
            Problem(
                "layer_types",
                sorted(kinds),
                "only full_attention is supported",
                _REMEDY,
            )
        )
    return found


def _missing(values: Mapping[str, Any]) -> list[Problem]:
    return [
        Problem(
            key,
            values.get(key),
            "must be a positive integer",
            "take it from the model's publisher",
        )
        for key in (*_SIZES, "max_position_embeddings")
        if type(values.get(key)) is not int or values[key] < 1
    ]


def _model(path: Path, values: Mapping[str, Any], family: Family) -> ModelSpec:
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    head_dim = values.get("head_dim")
    if head_dim is None and hidden % heads:
        raise CheckpointError(
            f"{path}: head_dim is absent and num_attention_heads={heads} does not divide "
            f"hidden_size={hidden}; add head_dim"
        )
    kv_heads = values.get("num_key_value_heads")
    return ModelSpec(
        **{name: values[name] for name in _SIZES},
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=hidden // heads if head_dim is None else head_dim,
        architecture=family.model_type,
        rms_norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
        attention_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        initializer_range=float(values.get("initializer_range", 0.02)),
    )


def _rope(path: Path, values: Mapping[str, Any], context: int) -> RopeSpec:
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
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise CheckpointError(
            f"{path}: {key}.rope_type={kind!r} is not supported; supported are "
            f"{', '.join(_ROPE_TYPES)}"
        )
    surplus = [name for name in given if name not in (*_ROPE_KEYS, *_ROPE_NAMES)]
    if surplus or given.get("partial_rotary_factor") not in (None, 1, 1.0):
        name = surplus[0] if surplus else "partial_rotary_factor"
        raise CheckpointError(
            f"{path}: {key}.{name}={given[name]!r} is not supported; {_REMEDY}"
        )
    fields = {name: given[name] for name in _ROPE_KEYS if given.get(name) is not None}
    for name, value in [("rope_theta", given.get("rope_theta")), *fields.items()]:
        _check_number(path, f"{key}.{name}", name, value)
    fields |= _original_length(path, key, kind, fields, values, context)
    if kind == "yarn" and "factor" not in fields:
        fields["factor"] = context / fields["original_max_position_embeddings"]
    theta = given.get("rope_theta", values.get("rope_theta", 10000.0))
    _check_number(path, f"{key}.rope_theta", "rope_theta", theta)
    numbers = {
        name: float(value) for name, value in fields.items() if name in _ROPE_NUMBERS
    }
    return RopeSpec(type=kind, theta=float(theta), **{**fields, **numbers})


def _check_number(path: Path, key: str, name: str, value: Any) -> None:
    wanted = {"truncate": (bool,), "original_max_position_embeddings": (int,)}.get(
        name, (int, float)
    )
    if value is not None and (type(value) not in wanted):
        raise CheckpointError(
            f"{path}: {key}={value!r} must be {' or '.join(t.__name__ for t in wanted)}"
        )


def _original_length(
    path: Path,
    key: str,
    kind: str,
    fields: Mapping[str, Any],
    values: Mapping[str, Any],
    context: int,
) -> dict[str, int]:
    """The original length as transformers resolves it;

    dynamic knows only `max_position_embeddings`.
    """
    if kind == "dynamic":
        return {"original_max_position_embeddings": context}
    if kind not in _HAS_ORIGINAL:
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
    return {"original_max_position_embeddings": inner or outer or context}


def stated_length(rope: RopeSpec, context: int) -> int:
    """`max_position_embeddings`:

    the context, but for dynamic the original length (see the module's text).
    """
    if rope.type == "dynamic" and rope.original_max_position_embeddings is not None:
        return rope.original_max_position_embeddings
    return context
