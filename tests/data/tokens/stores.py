"""Texts, and the bytes of a folder, for the tests of tokenising."""

from __future__ import annotations

from pathlib import Path

from tests.text_data import varied_texts

TEXTS = varied_texts(120)
SHARD = 4000


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
