"""Hugging Face's `config.json` to and from our `ModelSpec` and `RopeSpec`.

Reading is strict: what we cannot compute is refused by name, never ignored. Writing
produces one file that transformers 4 and 5 both read as the same model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alia_ctx.errors import CheckpointError, Problem
from alia_ctx.hf.families import FAMILIES, Family
from alia_ctx.hf.json_files import Fields, load_json, refusal
from alia_ctx.hf.limits import without_limits
from alia_ctx.hf.rope_config import read_rope, rope_parameters, stated_length
from alia_ctx.spec.model import ModelSpec, of_architecture
from alia_ctx.spec.rope import RopeSpec

# The reader of configurations reads a base's sizes here, and needs no torch for it.
if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
_REMEDY = (
    "alia-ctx computes full causal attention with RoPE and SwiGLU; "
    "use a model without it"
)
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)
# Keys that change the computation in a way we do not have, and the values at which they do not.
_INERT: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": (None, "silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "attention_chunk_size": (None,),
    "use_bidirectional_attention": (False, None),
    "per_layer_config": (None, {}),
    "is_causal": (True,),  # null is false to transformers
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
    "quantization": (None,),  # as MLX writes it
    "auto_map": (None,),
    "transformers_weights": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (1, 1.0, None),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "layer_norm_eps": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}
_REMEDIES = {
    "is_causal": "take it out only if the model was trained with causal attention",
    **dict.fromkeys(
        ("quantization_config", "quantization"), "use the model's unquantised weights"
    ),
}
# The same of keys that servers compute with (`get_rope` of vLLM and SGLang, SGLang's
# Llama) and transformers does not, so that an import has nothing to refuse.
_INERT_TO_SERVERS: dict[str, tuple[Any, ...]] = {
    "dual_chunk_attention_config": (None,),
    "rope_is_neox_style": (True, None),
    "is_neox_style": (True, None),
}

_KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


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
    problems = _unsupported(values, family)
    fields = Fields(values, problems)
    context = fields.integer("max_position_embeddings")
    model = _model(fields, family)
    if problems:
        raise refusal(path, problems)
    rope = read_rope(path, values, context, model.head_dim)
    if problems := model.problems("config"):
        raise refusal(path, problems)
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
    kept as they are, but for those that limit lengths (`alia_ctx.hf.limits`), and those
    that are `left_behind`.

    Raises CheckpointError for a model that no `config.json` describes.
    """
    if problems := model.problems():  # an earlier release may have trained it
        raise refusal("the checkpoint's model", problems)
    family, original = FAMILIES[model.architecture], original or {}
    left = {problem.key for problem in left_behind(original)}
    # A null means the default, which not every key of transformers can say with null.
    stated = {k: v for k, v in original.items() if v is not None and k not in left}
    # Which kernel computes is a choice of whoever runs the model, and of its machine.
    for name in ("attn_implementation", "_attn_implementation"):
        if stated.get(name) in _KERNELS:
            del stated[name]
    config = without_limits(stated)
    parameters = rope_parameters(rope)
    dtype_name = str(dtype).removeprefix("torch.")
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
        "torch_dtype": dtype_name,
        "dtype": dtype_name,
        **family.fixed,
    }
    if rope.type == "llama3":
        # llama.cpp's conversion (`LlamaModel.generate_extra_tensors`) reads it here
        # alone, and takes 8192 where it is missing; transformers 5 lets it speak for the
        # dict, which says the same.
        config["original_max_position_embeddings"] = parameters[
            "original_max_position_embeddings"
        ]
    return config


def left_behind(original: Mapping[str, Any]) -> list[Problem]:
    """Keys of a base's config.json with which others would compute another model than
    training: by a server's own reading, or such as an import refuses, which one of an
    earlier release took.
    """
    rule = "with it vLLM or SGLang computes another attention than was trained"
    remedy = "it belongs to the base's own weights alone"
    return _changing(original) + [
        Problem(key, original[key], rule, remedy)
        for key, inert in _INERT_TO_SERVERS.items()
        if key in original and original[key] not in inert
    ]


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


def _changing(values: Mapping[str, Any]) -> list[Problem]:
    return [
        Problem(key, values[key], "is not supported", _REMEDIES.get(key, _REMEDY))
        for key, inert in _INERT.items()
        if key in values and values[key] not in inert
    ]


def _unsupported(values: Mapping[str, Any], family: Family) -> list[Problem]:
    problems = _changing(values)
    # Qwen configurations name a window that is off until use_sliding_window turns it on.
    window = values.get("sliding_window")
    if window is not None and "use_sliding_window" not in family.fixed:
        problems.append(
            Problem(
                "sliding_window",
                window,
                "sliding-window attention is not supported",
                "set it to null only if the model was trained with full attention",
            )
        )
    fields = Fields(values, problems)
    layers = fields.words("layer_types")
    if others := set(layers) - {"full_attention"}:
        rule = "only full_attention is supported"
        problems.append(Problem("layer_types", sorted(others), rule, _REMEDY))
    if layers and len(layers) != values.get("num_hidden_layers"):
        rule = f"num_hidden_layers is {values.get('num_hidden_layers')!r}"
        value = f"{len(layers)} layers"
        problems.append(Problem("layer_types", value, rule, "correct one of the two"))
    _check_carried(fields)
    return problems


def _check_carried(fields: Fields) -> None:
    """Values that we do not compute with, but carry into the exported config.json, whose
    types transformers checks as it loads it (the fields of its configuration classes).
    """
    stated = {name for name, value in fields.values.items() if value is not None}
    if "attention_dropout" in stated:
        fields.number("attention_dropout")
    for name in {"pretraining_tp", "max_window_layers", "num_labels"} & stated:
        fields.integer(name, least=0)
    for name in {"use_cache", "mlp_bias", "attention_bias"} & stated:
        fields.flag(name)
    for name in {"bos_token_id", "eos_token_id", "pad_token_id"} & stated:
        fields.ids(name)
    for name in {"id2label", "label2id"} & stated:
        fields.mapping(name, integers="keys" if name == "id2label" else "values")


def _model(fields: Fields, family: Family) -> ModelSpec:
    """The sizes; worth nothing where `fields` has gathered problems."""
    sizes: dict[str, Any] = {name: fields.integer(name) for name in _SIZES}
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    if fields.values.get("head_dim") is None and hidden % heads:
        rule = f"is absent and num_attention_heads={heads} does not divide {hidden}"
        fields.problems.append(Problem("head_dim", None, rule, "add head_dim"))
    return ModelSpec(
        **sizes,
        **of_architecture(family.model_type),
        num_key_value_heads=fields.integer("num_key_value_heads", default=heads),
        head_dim=fields.integer("head_dim", default=hidden // heads),
        architecture=family.model_type,
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        initializer_range=fields.number("initializer_range", default=0.02),
    )
