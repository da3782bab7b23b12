"""The lengths at which a base model stopped, and which must not travel into a longer one.

Every file of a Hugging Face directory can hold some, under many names: those that
`generate`, the tokenizers and servers read today, and those of training tools. So a
limit is recognised by how it is spelled, and raised to the context where it has to
stand, else dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# max_length, max_new_tokens, n_ctx, seq_length, model_max_length, max_cache_len, ...;
# not max_position_embeddings, which the conversion writes itself.
_LENGTH = re.compile(
    r"(?:.*_)?(?:max|min|seq|sequence|n|num)_(?:.*_)?"
    r"(?:len|length|tokens|ctx|positions)|max_?len|n_ctx|seq_?len|max_time"
)
_DERIVED_FROM_LENGTH = ("exponential_decay_length_penalty", "forced_eos_token_id")
_KEPT = ("num_assistant_tokens", "prompt_lookup_num_tokens", "suppress_tokens")
_ORIGINAL = "original_max_position_embeddings"


def without_limits(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` (config.json or generation_config.json) without keys that limit a length,
    inside its objects too (`task_specific_params`, `cache_config`).

    The original length beside RoPE goes as well: transformers 5 would take it for that of
    the new RoPE, which states its own.
    """
    return {
        key: without_limits(value) if isinstance(value, Mapping) else value
        for key, value in document.items()
        if not _is_limit(key) and key != _ORIGINAL
    }


def lift_generation(document: Mapping[str, Any], context: int) -> dict[str, Any]:
    """A generation_config.json whose `max_length` is at least `context` where it had one,
    and that has no other limit: `generate` would raise, or stop without a word.
    """
    lifted = without_limits(document)
    stated = document.get("max_length")
    if stated is not None:
        is_number = type(stated) in (int, float) and math.isfinite(stated)
        lifted["max_length"] = max(context, int(stated)) if is_number else context
    return lifted


def lift_tokenizer_config(document: Mapping[str, Any], context: int) -> dict[str, Any]:
    """A tokenizer_config.json that cuts nothing of `context` tokens and pads to no length."""
    dropped = ("truncation", "truncation_strategy", "stride", "pad_to_multiple_of")
    lifted = {
        key: value
        for key, value in document.items()
        if not _is_limit(key) and key not in dropped
    }
    stated = document.get("model_max_length")
    if stated is not None:
        enough = type(stated) in (int, float) and stated >= context
        lifted["model_max_length"] = stated if enough else context
    return lifted


def lift_tokenizer(document: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that cuts nothing, and pads to no fixed length."""
    lifted = dict(document)
    if lifted.get("truncation") is not None:
        lifted["truncation"] = None
    padding = lifted.get("padding")
    if isinstance(padding, Mapping) and padding.get("strategy") != "BatchLongest":
        lifted["padding"] = None
    return lifted


def _is_limit(key: object) -> bool:
    if not isinstance(key, str):  # to_dict() of transformers has id2label by number
        return False
    if key in _KEPT or key.endswith("_token_id"):
        return key in _DERIVED_FROM_LENGTH
    return key in _DERIVED_FROM_LENGTH or _LENGTH.fullmatch(key) is not None
