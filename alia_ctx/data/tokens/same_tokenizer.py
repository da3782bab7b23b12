"""Whether two tokenizer directories give one text the same ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.data.tokens.tokenizer_files import tokenizer_statement
from alia_ctx.identity import differences

# Of the file of the `tokenizers` library: what lies between a text and its ids. The
# other parts add special tokens, decode, cut and pad.
_BEFORE_IDS = ("normalizer", "pre_tokenizer", "model")


def backend_of(auto: Any) -> dict[str, Any]:
    """The parts of a tokenizer of the `tokenizers` library by name, as transformers has
    made them; empty where it is none of that library, or has a part written in Python.
    """
    try:
        parts = json.loads(auto.backend_tokenizer.to_str())
    except Exception:  # whatever a tokenizer without such a backend raises
        return {}
    return parts if isinstance(parts, dict) else {}


def changed_ids(then: Path, now: Path, model_type: str | None = None) -> list[str]:
    """In what `now` gives other ids than `then` gave, a line each; none where it only has
    tokens in addition.

    Compared are the files, and where these differ what transformers makes of them: each
    token of `then`, normalizer, pre-tokenizer and model as a whole, and sample texts.
    DataError where transformers cannot load one of the two.
    """
    if tokenizer_statement(then) == tokenizer_statement(now):
        return []
    before, after = (HubTokenizer(folder, model_type) for folder in (then, now))
    lines = _moved(before.vocabulary, after.vocabulary, "tokens have other ids")
    lines += _moved(before.special, after.special, "special tokens are none, or others")
    parts = [_before_ids(tokenizer.auto) for tokenizer in (before, after)]
    lines += [
        f"{name} is another" for name in _BEFORE_IDS if parts[0][name] != parts[1][name]
    ]
    probes = before.probes()
    ids = [tokenizer.ids(probes, split_special=False) for tokenizer in (before, after)]
    for text, first, second in zip(probes, *ids, strict=True):
        if first != second:
            shown = differences(first, second, repr(text))
            return [*lines, *shown]
    return lines


def _moved(then: Mapping[str, int], now: Mapping[str, int], what: str) -> list[str]:
    apart = [token for token, number in then.items() if now.get(token) != number]
    if not apart:
        return []
    token = min(apart)
    return [f"{len(apart)} {what}: {token!r} {then[token]} there, {now.get(token)} now"]


def _before_ids(auto: Any) -> dict[str, Any]:
    """Vocabularies are compared token by token, as a model may have more of them."""
    parts = backend_of(auto)
    model = {k: v for k, v in (parts.get("model") or {}).items() if k != "vocab"}
    return {**{name: parts.get(name) for name in _BEFORE_IDS}, "model": model}
