"""Token ids of stores and tokenizers, held against the size of a model's vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alia_ctx.data.tokens.store_files import RANGE
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import Problem
from alia_ctx.files import parse_json, write_json

_BLOCK = 16 << 20  # tokens looked at in one go
_NAMED = 5


def token_range(tokens: np.ndarray) -> tuple[int, int]:
    """Smallest and largest id of `tokens` [n], in bounded memory; (0, -1) of none."""
    smallest, largest = 0, -1
    for start in range(0, tokens.size, _BLOCK):
        block = tokens[start : start + _BLOCK]
        low, high = int(block.min()), int(block.max())
        smallest = low if largest < 0 and not start else min(smallest, low)
        largest = high if not start else max(largest, high)
    return smallest, largest


def recorded_range(fingerprint: str, smallest: int, largest: int) -> dict[str, Any]:
    """What to write down of the `.bin` file with this fingerprint, so that it need not be
    read again.
    """
    return {
        "file": fingerprint,
        "smallest": smallest,
        "largest": largest,
    }


def known_range(
    data_path: Path, fingerprint: str, tokens: np.ndarray, sidecar: Mapping[str, Any]
) -> tuple[int, int]:
    """The range of a store's ids: as the run that wrote it, or an earlier look, wrote
    down for this very file; otherwise all tokens are read, once.

    A store of other origin gets a file `PREFIX.range.json`, where that can be written.
    """
    cache = data_path.with_suffix(RANGE)
    for record in (sidecar.get("token_range"), _read(cache)):
        if isinstance(record, dict) and record.get("file") == fingerprint:
            return int(record["smallest"]), int(record["largest"])
    smallest, largest = token_range(tokens)
    # Somebody else's store may lie on a read-only file system: read again next time.
    with contextlib.suppress(OSError):
        write_json(cache, recorded_range(fingerprint, smallest, largest))
    return smallest, largest


def _read(path: Path) -> object:
    try:
        return parse_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def vocabulary_problems(
    tokenizer_dir: str | Path,
    vocab_size: int,
    *,
    model_type: str | None = None,
    key: str = "tokenizer",
) -> list[Problem]:
    """The rule that every token of a tokenizer has a row in the model's embedding.

    `model_type` is that of the model; DataError where transformers cannot load the
    directory.
    """
    vocabulary = HubTokenizer(tokenizer_dir, model_type).vocabulary
    beyond = sorted(
        (number, token) for token, number in vocabulary.items() if number >= vocab_size
    )
    if not beyond:
        return []
    named = ", ".join(f"{token!r} {number}" for number, token in beyond[:_NAMED])
    more = f" and {len(beyond) - _NAMED:,} more" if len(beyond) > _NAMED else ""
    return [
        Problem(
            key,
            tokenizer_dir,
            f"has {len(beyond):,} ids beyond the model's {vocab_size:,} "
            f"(model.vocab_size): {named}{more}",
            "take the model's own tokenizer, remove the tokens, or import the model "
            "with an embedding of more rows",
        )
    ]
