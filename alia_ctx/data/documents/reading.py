"""Slices of files -> documents; what cannot be used is named with its reason, never lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alia_ctx.data.documents.containers import (
    SET_TEXT_KEY,
    ByteStream,
    chat_remedy,
    open_bytes,
    open_counted,
)
from alia_ctx.data.documents.counts import DocumentCounts, LeftOut
from alia_ctx.data.documents.inputs import SourceSpec, find_inputs
from alia_ctx.data.documents.json_values import json_values, records, values_of
from alia_ctx.data.documents.parquet import NoValue, column_values, open_parquet
from alia_ctx.data.documents.slices import UTF8_BOM, Slice, plan_shards
from alia_ctx.errors import DataError


@dataclass(frozen=True)
class Document:
    """One document: its text, its id, and the file that it came from."""

    text: str
    id: str
    file: str


Item = Document | LeftOut
_LITTLE = 1 << 16  # bytes that `check` reads


def read_documents(
    spec: SourceSpec, counts: DocumentCounts | None = None
) -> Iterator[Document]:
    """All documents of a source in order; `counts` is filled on the way."""
    counts = counts if counts is not None else DocumentCounts()
    for shard in plan_shards(find_inputs(spec.inputs).files, spec):
        for part in shard:
            yield from read_slice(part, spec, counts)


def nothing_to_read(spec: SourceSpec) -> str | None:
    """Why a source of little text has no document; None where it has one, where it is
    large, and where something else is wrong with it, which reading it says.
    """
    counts = DocumentCounts()
    try:
        files = find_inputs(spec.inputs).files
        if spec.chat or sum(map(os.path.getsize, files)) > _LITTLE:
            return None
        if next(read_documents(spec, counts), None) is not None:
            return None
    except (DataError, OSError):
        return None
    return f"no documents; left out: {counts.reasons()}"


def read_slice(
    part: Slice, spec: SourceSpec, counts: DocumentCounts
) -> Iterator[Document]:
    """Documents of one slice; what is left out goes into `counts`.

    Memory and errors are those of `read_items`.
    """
    for item in read_items(part, spec):
        if isinstance(item, Document):
            counts.documents += 1
            yield item
        else:
            counts.leave_out(item.reason, item.where)


def read_items(
    part: Slice, spec: SourceSpec, stream: ByteStream | None = None
) -> Iterator[Item]:
    """Documents of one slice and what is left out, in order and in bounded memory (about
    twice max_document_bytes; for Parquet one batch of rows).

    `stream` are the file's bytes where they are open already. Raises DataError for a
    file that cannot be read to its end (a broken or cut-off container, JSON over several
    lines that is none), for a slice in which no record at all has the text field, and
    for a file of lines none of which is JSON.
    """
    if part.format == "parquet":
        items = _read_parquet(part, spec)
    elif stream is not None:
        items = _read_stream(stream, part, spec)
    else:
        items = _read_file(part, spec)
    seen: dict[str, int] = {}
    first: dict[str, str] = {}
    for item in items:
        if isinstance(item, Document) and not item.text.strip():
            item = LeftOut("empty", item.id)
        reason = item.reason if isinstance(item, LeftOut) else "document"
        seen[reason] = seen.get(reason, 0) + 1
        if isinstance(item, LeftOut):
            first.setdefault(reason, item.where)
        yield item
    if "missing_text" in seen and not {"document", "empty"} & seen.keys():
        remedy = f"{SET_TEXT_KEY} to the field that holds it"
        fields = first["missing_text"].rpartition("(has ")[2].rstrip(")")
        remedy += chat_remedy([name.strip("'") for name in fields.split(", ")])
        raise DataError(
            f"{part.file}: none of {seen['missing_text']} records has text under the key "
            f"{spec.text_key!r} ({first['missing_text']}); {remedy}"
        )
    broken = seen.get("invalid_json", 0) + seen.get("invalid_utf8", 0)
    whole = part.format == "jsonl" and part.stop is None
    if whole and broken > 1 and not {"document", "empty", "missing_text"} & seen.keys():
        where = first.get("invalid_json") or first["invalid_utf8"]
        raise DataError(
            f"{part.file}: none of its {broken} lines is JSON in UTF-8 ({where}); "
            "convert it to JSON lines, or give it the suffix of what it is"
        )


def read_blocks(part: Slice, spec: SourceSpec) -> Iterator[tuple[list[Item], int]]:
    """The items of a slice in blocks of `part.block_bytes` characters of text, each with
    the bytes on disk that it took (for Parquet unknown, 0).

    Where blocks end depends on nothing but the file. Errors are those of `read_items`.
    """
    with open_counted(part.file) as (stream, raw):
        block: list[Item] = []
        size = done = 0
        for item in read_items(part, spec, stream):
            block.append(item)
            size += len(item.text if isinstance(item, Document) else item.where)
            if size >= (part.block_bytes or 1):
                now = min(raw.tell(), part.size) if part.format != "parquet" else 0
                yield block, now - done
                block, size, done = [], 0, now
        if block:
            yield block, 0


def _read_file(part: Slice, spec: SourceSpec) -> Iterator[Item]:
    with open_bytes(part.file) as stream:
        yield from _read_stream(stream, part, spec)


def _read_stream(stream: ByteStream, part: Slice, spec: SourceSpec) -> Iterator[Item]:
    if part.format == "text":
        yield _read_text(stream, part, spec)
        return
    # A JSON record is longer than its text (escapes, other fields), so it may take
    # twice the text's limit.
    limit = 2 * spec.max_document_bytes
    if part.format == "json":
        values = json_values(stream, part.file, limit)
        for number, record in enumerate(r for value in values for r in records(value)):
            yield _from_record(record, f"{part.file}#{number}", part.file, spec)
        return
    for position, line in _lines(stream, part, limit):
        where = f"{part.file}@{position}"
        if line is None:
            yield LeftOut("too_long", where)
        elif line.strip():
            yield from _parse_line(line, where, part.file, spec)


def _read_text(stream: ByteStream, part: Slice, spec: SourceSpec) -> Item:
    raw = stream.read(spec.max_document_bytes + 1)
    if len(raw) > spec.max_document_bytes:
        return LeftOut("too_long", part.file)
    text = _decode(raw)
    if text is None:
        return LeftOut("invalid_utf8", part.file)
    if 4 * raw.count(b"\0") > len(raw) > 0:
        # UTF-16 and UTF-32 of Latin letters without a mark are valid UTF-8, with NULs.
        return LeftOut("invalid_utf8", f"{part.file} (NUL bytes: UTF-16 or binary?)")
    return Document(text, part.file, part.file)


def _lines(
    stream: ByteStream, part: Slice, limit: int
) -> Iterator[tuple[int, bytes | None]]:
    """(byte position, line) of the lines that begin inside the slice;

    None for a line above `limit` bytes.
    """
    position = 0
    if part.start:
        stream.seek(part.start - 1)
        position = part.start - 1 + _skip_line(stream, limit)
    while part.stop is None or position < part.stop:
        line = stream.readline(limit + 1)
        if not line:
            return
        if len(line) > limit and not line.endswith(b"\n"):
            yield position, None
            position += len(line) + _skip_line(stream, limit)
        else:
            yield position, line
            position += len(line)


def _skip_line(stream: ByteStream, block: int) -> int:
    skipped = 0
    while piece := stream.readline(min(block, 1 << 20)):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _parse_line(line: bytes, where: str, file: str, spec: SourceSpec) -> Iterator[Item]:
    """The documents of a line: one, but where it holds an array or several records."""
    decoded = _decode(line)
    if decoded is None:
        yield LeftOut("invalid_utf8", where)
        return
    try:
        found = [v for value in values_of(decoded) for v in records(value)]
    except ValueError:
        yield LeftOut("invalid_json", where)
        return
    for number, record in enumerate(found):
        place = where if len(found) == 1 else f"{where}#{number}"
        yield _from_record(record, place, file, spec)


def _from_record(record: object, where: str, file: str, spec: SourceSpec) -> Item:
    text = record.get(spec.text_key) if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(text, str):
        names = list(record)[:8] if isinstance(record, dict) else None
        fields = "no object" if names is None else ", ".join(map(repr, names))
        return LeftOut("missing_text", f"{where} (has {fields or 'no fields'})")
    if not text.isascii() and not _encodable(text):
        return LeftOut("invalid_utf8", where)  # a lone surrogate is no character
    long = len(text) > spec.max_document_bytes // 4
    if long and len(text.encode()) > spec.max_document_bytes:
        return LeftOut("too_long", where)
    number = record.get(spec.id_key) if spec.id_key else None
    return Document(text, _identity(number, where), file)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity(value: object, otherwise: str) -> str:
    if value is None or isinstance(value, NoValue):
        return otherwise.encode("utf-8", "replace").decode()
    # Parquet has types that JSON has not: dates, bytes, decimals.
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except (
        TypeError,
        ValueError,
        RecursionError,
    ):  # a name of another type, deep nesting
        text = otherwise
    return text.encode("utf-8", "replace").decode()


def _decode(raw: bytes) -> str | None:
    try:
        return raw.removeprefix(UTF8_BOM).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _read_parquet(part: Slice, spec: SourceSpec) -> Iterator[Item]:
    columns = list(dict.fromkeys(filter(None, (spec.text_key, spec.id_key))))
    with open_parquet(part.file, spec.text_key, spec.id_key) as parquet:
        row = sum(
            parquet.metadata.row_group(group).num_rows for group in range(part.start)
        )
        groups = list(range(part.start, part.stop or 0))
        for batch in parquet.iter_batches(
            batch_size=256, row_groups=groups, columns=columns
        ):
            yield from _parquet_rows(batch, row, part.file, spec)
            row += batch.num_rows


def _parquet_rows(batch: Any, row: int, file: str, spec: SourceSpec) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.compute as pc

    # As bytes: Arrow does not check that a string column is UTF-8, and a bad value must
    # not stop the rest.
    column = batch.column(spec.text_key)
    texts = column.cast(pa.large_string()).cast(pa.large_binary())
    sizes = pc.binary_length(texts).to_pylist()
    ids: list[Any] = [None] * batch.num_rows
    if spec.id_key == spec.text_key:
        ids = [_decode(text.as_py() or b"") for text in texts]
    elif spec.id_key:
        ids = column_values(batch.column(spec.id_key))
    for number, size in enumerate(sizes):
        where = f"{file}#{row + number}"
        if size is None:
            yield LeftOut("missing_text", f"{where} (null)")
        elif size > spec.max_document_bytes:
            yield LeftOut("too_long", where)
        elif (text := _decode(texts[number].as_py())) is None:
            yield LeftOut("invalid_utf8", where)
        else:
            yield Document(text, _identity(ids[number], where), file)
