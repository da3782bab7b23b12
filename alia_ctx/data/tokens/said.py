"""Which tokens of a store of conversations users and assistant say, and which are calls,
beside the store.

Said is not what the template writes, nor tools, system prompts and results: those are the
same in thousands of conversations. Calls are those of trained turns, from where a turn's
calls begin to its stop token. One byte a token in `PREFIX.said`, of the bits below; stores
of earlier releases mark no calls.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from alia_ctx.data.tokens.store import TokenStore
from alia_ctx.data.tokens.store_files import SAID, store_path
from alia_ctx.errors import DataError

SAYS, CALLS = 1, 2


def said_path(prefix: Path) -> Path:
    return store_path(prefix, SAID)


def said_of(store: TokenStore) -> np.ndarray | None:
    """Bits of each token, uint8 [tokens], mapped; None where the store has no such file,
    as stores that were made elsewhere. DataError where it is of other tokens.
    """
    path = said_path(store.prefix)
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size != store.n_tokens and not store.sidecar and store.weights is None:
        return None  # beside a store without loss weights it is somebody else's
    if size != store.n_tokens:
        raise DataError(
            f"{path}: is of {size:,} tokens and its store of {store.n_tokens:,}; make the "
            f"store anew with `alia-ctx tokenize CONFIG --source {shlex.quote(store.prefix.name)} "
            "--overwrite`, or remove the file"
        )
    return np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
