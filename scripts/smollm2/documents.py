"""Documents as JSON lines with `id` and `text`, written whole and read with care."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file, parse_json
from alia_ctx.progress import say

LONGEST = 800_000  # characters of a document: longer ones become volumes


def number(text: str) -> int:
    """A number by hash, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def read_documents(file: Path, remedy: str) -> Iterator[tuple[str, str]]:
    """(id, text) of each line; DataError with the file, the line and the remedy where it is
    none of that form.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; {remedy}")
    # Not splitlines: text holds other separators of lines, which JSON does not escape.
    for at, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            document = parse_json(line.decode("utf-8"))
            name, text = document["id"], document["text"]
            if not (isinstance(name, str) and isinstance(text, str)):
                raise TypeError("id and text are not both text")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}, line {at}: is no document with `id` and `text` "
                f"({type(error).__name__}: {error}); {remedy}"
            ) from error
        yield name, text


def write_documents(
    file: Path, documents: Iterator[tuple[str, str]], without: str
) -> None:
    """Write (id, text) as JSON lines. DataError, with nothing written, where there is not
    one: `without` says why and what to do.
    """
    count = size = 0
    with atomic_file(file) as out:
        for name, text in documents:
            record = json.dumps({"id": name, "text": text}, ensure_ascii=False)
            # A file's name may be no UTF-8, and a text may spell half of a character.
            out.write(f"{record}\n".encode("utf-8", "replace"))
            count, size = count + 1, size + len(text)
        if not count:
            raise DataError(f"{file.name} would have no document: {without}")
    say(f"{file.name}: {count:,} documents, {size:,} characters")
