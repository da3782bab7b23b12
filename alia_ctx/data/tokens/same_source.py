"""Whether a token store is the one that its source would give now."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.documents.inputs import find_inputs
from alia_ctx.data.tokens.encoder import TextEncoder
from alia_ctx.data.tokens.source import identity_differences, source_identity
from alia_ctx.data.tokens.store import TokenStore
from alia_ctx.errors import DataError


def require_same_source(
    spec: SourceSpec, prefix: Path, encoder: Callable[[], TextEncoder]
) -> None:
    """DataError unless the store at `prefix` is what `tokenize_source` would make of `spec`
    now, with what `encoder` makes: of the same inputs, tokenizer and options.

    Of a store that is given as one (`spec.store`) the inputs are not at hand, and of one
    that was made elsewhere nothing is: what it says of itself is compared.
    """
    then = TokenStore(prefix).sidecar.get("identity")
    if not isinstance(then, dict):
        return
    files = [] if spec.store else find_inputs(spec.inputs).files
    now = source_identity(spec, files, encoder(), then.get("shard_bytes", 0))
    if spec.store:
        compared = ("tokenizer", "special_ids", "special_tokens")
        then, now = ({key: side.get(key) for key in compared} for side in (then, now))
    # Written and read back, so that tuples are lists as in the file.
    differing = identity_differences(then, json.loads(json.dumps(now)))
    if differing:
        raise DataError(
            f"{prefix}: this store was made from something else than the configuration "
            f"says now:\n{differing}\nrestore that, or make the store anew with "
            f"`alia-ctx tokenize CONFIG --source {prefix.name} --overwrite`"
        )
