"""JSON that somebody else wrote: whatever it holds, a file that should be an object is named
with the remedy, and none ends a command with a traceback.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alia_ctx.data.tokens.shards import read_note
from alia_ctx.data.tokens.store import TokenStore, write_store
from alia_ctx.errors import DataError
from alia_ctx.files import parse_json
from tests.paths import ROOT

BROKEN = {
    "nested too deeply": b"[" * 100_000,
    "no object": b"[1]",
    "a number of 5,000 digits": b"1" * 5_000,
    "cut off": b'{"a": ',
    "no text": b"\xff\xfe\x00",
    "empty": b"",
}
# Text of our own making, or of a library's that has parsed it.
OWN_TEXT = {"files.py", "identity.py", "manifest.py", "rendered_tokens.py"}
OWN_TEXT |= {"same_source.py", "same_tokenizer.py", "special_tokens.py", "calls.py"}
OWN_TEXT |= {"special_ids.py", "serving.py", "rendezvous.py", "json_values.py"}
OWN_TEXT |= {
    "tokenizer.py",
    "dry_running.py",
    "dry_run.py",
    "roll_call.py",
    "presence.py",
    "bfcl_program.py",
    "showing.py",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_statement_of_a_store_is_named(content: bytes, tmp_path: Path) -> None:
    write_store(tmp_path / "a", [np.arange(5)], 50)
    sidecar = tmp_path / "a.json"
    sidecar.write_bytes(content)
    assert TokenStore(tmp_path / "a").sidecar == {}  # of somebody else
    documents = pa.table(
        {"id": ["a"], "file": ["a.jsonl"]}
    )  # as `tokenize` writes them
    pq.write_table(documents, tmp_path / "a.documents.parquet")
    with pytest.raises(DataError, match=r"a\.json: broken .*tokenize the source again"):
        _ = TokenStore(tmp_path / "a").sidecar
    with pytest.raises(DataError, match=rf"a\.json: .*delete {tmp_path}"):
        read_note(sidecar)


def test_nesting_is_a_value_error_as_all_that_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(BROKEN["nested too deeply"])


def test_foreign_files_are_read_through_one_function() -> None:
    """`json.loads` raises RecursionError besides, which readers forget."""
    using = {
        path.name
        for path in (ROOT / "alia_ctx").rglob("*.py")
        if re.search(r"\bjson\.loads?\(", path.read_text())
    }
    assert using <= OWN_TEXT
