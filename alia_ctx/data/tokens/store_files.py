"""Which files a store has: its prefix with suffixes that others may use too, as a Megatron
store `wiki.bin` lies beside the `wiki.json` that it was made from.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alia_ctx.errors import DataError
from alia_ctx.files import read_object

SAID = ".said"
RANGE = ".range.json"  # of a store that was made elsewhere: its range of ids
LEFT_OUT = ".left_out.jsonl"
DOCUMENTS = ".documents.parquet"
# In the order in which they get their names; the last one says that all are whole.
TEXT_SUFFIXES = (".bin", ".idx", DOCUMENTS, ".json")
CHAT_SUFFIXES = (".bin", ".idx", DOCUMENTS, ".weights", SAID, LEFT_OUT, ".json")
# `write_json` sorts keys, and no sidecar is without the first of these.
_FIRST_KEY = re.compile(rb'\s*\{\s*"(bin_checksum|weights_checksum)"\s*:')


def store_path(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def has_documents(prefix: Path) -> bool:
    """Whether `tokenize` wrote ids and files of documents there, as it does beside every
    store and no other program does.
    """
    path = store_path(prefix, DOCUMENTS)
    if not path.is_file():
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names) == ["id", "file"]
    except pa.ArrowInvalid:  # no Parquet
        return False


def read_sidecar(prefix: Path) -> dict[str, Any]:
    """What `tokenize` wrote beside the store at `prefix`; empty for one made elsewhere,
    whatever else is called `PREFIX.json`: of that no more is read than its beginning.

    DataError where it is ours, and broken.
    """
    path = store_path(prefix, ".json")
    if not path.is_file():
        return {}
    with open(path, "rb") as stream:
        is_ours = _FIRST_KEY.match(stream.read(256))
    if not is_ours and not has_documents(prefix):
        return {}  # with them it is ours, and damaged at its beginning
    try:
        return read_object(path)
    except ValueError as error:
        raise DataError(
            f"{path}: broken ({error}); tokenize the source again with --overwrite"
        ) from error
