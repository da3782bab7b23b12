"""The lengths at which a base model stopped, and which must not travel into a longer one.

Every file of a Hugging Face directory can hold some, under many names: those that
`generate`, the tokenizers and servers read today, and those of training tools. So a
limit is recognised by how it is spelled, and raised to the context where it has to
stand, else dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alia_ctx.data.tokens.tokenizer_files import cuts_or_pads, is_limit

_ORIGINAL = "original_max_position_embeddings"
# Objects whose keys are settings of `generate`. What a key of another object means is not
# known, and half of an object may mean something else.
_OF_SETTINGS = ("task_specific_params", "cache_config")


def without_limits(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` (config.json or generation_config.json) without keys that limit a length,
    at its top level and anywhere inside `task_specific_params` and `cache_config`.

    The original length beside RoPE goes as well: transformers 5 would take it for that of
    the new RoPE, which states its own.
    """
    return {
        key: _unlimited(value) if key in _OF_SETTINGS else value
        for key, value in document.items()
        if not is_limit(key) and key != _ORIGINAL
    }


def _unlimited(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _unlimited(v) for k, v in value.items() if not is_limit(k)}
    return [_unlimited(v) for v in value] if isinstance(value, list) else value


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
    lifted = {k: v for k, v in document.items() if not cuts_or_pads(k)}
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
