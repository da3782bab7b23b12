"""Whether a token store is the one that its source would give now."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.documents.inputs import find_inputs
from alia_ctx.data.tokens.encoder import TextEncoder
from alia_ctx.data.tokens.remedy import making_anew
from alia_ctx.data.tokens.source import identity_differences, source_identity
from alia_ctx.data.tokens.special_tokens import SpecialTokens
from alia_ctx.data.tokens.store import TokenStore
from alia_ctx.data.tokens.tokenizer import renewed
from alia_ctx.errors import DataError


def require_same_source(
    spec: SourceSpec,
    prefix: Path,
    encoder: Callable[[], TextEncoder],
    name: str | None = None,
) -> None:
    """DataError unless the store at `prefix` is what `tokenize_source` would make of `spec`
    now, with what `encoder` makes: of the same inputs, tokenizer and options.

    Of a store that is given as one (`spec.store`) the inputs are not at hand, and of one
    that was made elsewhere nothing is: what it says of itself is compared. `name` is the
    source's, where the prefix does not end in it.
    """
    then = TokenStore(prefix).sidecar.get("identity")
    if not isinstance(then, dict):
        return
    files = [] if spec.store else find_inputs(spec.inputs).files
    made = encoder()
    then = renewed(then, made.former_fingerprint, made.fingerprint)
    now = source_identity(spec, files, made, then.get("shard_bytes", 0))
    if spec.store:
        # One of conversations has no `special_ids`: its template puts BOS and EOS.
        compared = {"tokenizer", "special_ids", "special_tokens"} & then.keys()
        then, now = ({key: side[key] for key in compared} for side in (then, now))
    # Written and read back, so that tuples are lists as in the file.
    differing = identity_differences(then, json.loads(json.dumps(now)))
    if differing:
        raise DataError(
            f"{prefix}: this store was made from something else than the configuration "
            f"says now:\n{differing}\nrestore that, or "
            f"{making_anew(spec, name or prefix.name)}"
        )


def require_same_options(
    spec: SourceSpec,
    prefix: Path,
    *,
    append_eos: bool,
    prepend_bos: bool,
    special_tokens: SpecialTokens,
    name: str | None = None,
) -> None:
    """DataError where the store at `prefix` says that it was made with other options than
    these: what `require_same_source` compares, but for what needs inputs and tokenizer,
    which need not be at hand where is trained.
    """
    then = TokenStore(prefix).sidecar.get("identity")
    if not isinstance(then, dict):
        return
    there: dict[str, object] = {"data.special_tokens": then.get("special_tokens")}
    asked: dict[str, object] = {"data.special_tokens": special_tokens}
    marks = then.get("special_ids")
    if marks or not spec.store:  # those of conversations, given as a store, have none
        there["data.append_eos"] = bool((marks or {}).get("after"))
        there["data.prepend_bos"] = bool((marks or {}).get("before"))
        asked |= {"data.append_eos": append_eos, "data.prepend_bos": prepend_bos}
    if not spec.store:
        for key in ("text_key", "id_key", "max_document_bytes"):
            there[key], asked[key] = then.get(key), getattr(spec, key)
    if lines := identity_differences(there, asked):
        raise DataError(
            f"{prefix}: this store was made with other options than the configuration "
            f"says now:\n{lines}\nrestore them, or "
            f"{making_anew(spec, name or prefix.name)}"
        )
