"""Whether the files of a store are those that `tokenize` wrote: its sidecar has their
checksums.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.tokens.remedy import making_anew
from alia_ctx.data.tokens.said import said_path
from alia_ctx.data.tokens.store import TokenStore
from alia_ctx.errors import DataError
from alia_ctx.files import file_checksum, file_fingerprint


def require_written(prefix: Path, remedy: str | None = None) -> None:
    """DataError where a file of the store at `prefix` is gone, or another than its sidecar
    says: one that was damaged, or changed for another of its size.

    Of `.bin` as much is read as `file_fingerprint` reads, of the others all. What has no
    record, as in stores that were made elsewhere, is believed. `remedy`: how the store is
    made anew, where that is not by tokenising the source that it is called by.
    """
    remedy = remedy or making_anew(SourceSpec(), prefix.name)
    store = TokenStore(prefix)
    tokens = store.sidecar.get("token_range")
    of_tokens = tokens.get("file") if isinstance(tokens, dict) else None
    sidecar = store.sidecar
    for path, recorded, read in (
        (store.data_path, of_tokens, file_fingerprint),
        (store.index_path, sidecar.get("idx_checksum"), file_checksum),
        (store.weights_path, sidecar.get("weights_checksum"), file_checksum),
        (said_path(prefix), sidecar.get("said_checksum"), file_checksum),
    ):
        there = path.is_file()
        if recorded is None or (there and read(path) == recorded):
            continue
        what = "is not what was written" if there else "is gone"
        raise DataError(
            f"{path}: {what} ({store.sidecar_path} has the checksum); copy it again, or "
            f"{remedy}"
        )
    _ = store.weights  # recorded or not, they must be of these tokens


def whole_sidecar(prefix: Path, overwrite: bool) -> dict[str, Any]:
    """The sidecar of a store whose files are those that were written; else DataError, or
    nothing where it may be overwritten.
    """
    try:
        require_written(prefix)
        return dict(TokenStore(prefix).sidecar)
    except DataError:
        if not overwrite:
            raise
        return {}
