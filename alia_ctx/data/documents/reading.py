"""Slices of files -> documents; what cannot be used is counted by reason, never lost silently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alia_ctx.data.documents.containers import ByteStream, open_bytes, open_parquet
from alia_ctx.data.documents.inputs import (
    COMPRESSIONS,
    Slice,
    SourceSpec,
    find_inputs,
    plan_shards,
)
from alia_ctx.errors import DataError

REASONS = (
    "empty",
    "invalid_utf8",
    "invalid_json",
    "missing_text",
    "too_long",
    "special_token",
)
_EXAMPLES = 5
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Document:
    """One document: its text, its id, and the file that it came from."""

    text: str
    id: str
    file: str


@dataclass
class DocumentCounts:
    """How many documents were read, and how many were left out for which reason.

    `examples` names the first few of each reason; `special_tokens` says how often each
    special token of the tokenizer was spelled in the text.
    """

    documents: int = 0
    empty: int = 0
    invalid_utf8: int = 0
    invalid_json: int = 0
    missing_text: int = 0
    too_long: int = 0
    special_token: int = 0
    examples: list[str] = field(default_factory=list)
    special_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def left_out(self) -> int:
        return sum(getattr(self, reason) for reason in REASONS)

    def reasons(self) -> str:
        """`3 empty, 1 too_long`: what was left out, or `nothing`."""
        counts = {reason: getattr(self, reason) for reason in REASONS}
        told = [f"{number:,} {reason}" for reason, number in counts.items() if number]
        return ", ".join(told) or "nothing"

    def leave_out(self, reason: str, where: str) -> None:
        """Count one document as left out for `reason`, one of REASONS."""
        number = getattr(self, reason) + 1
        setattr(self, reason, number)
        if number <= _EXAMPLES:
            self.examples.append(f"{reason}: {where}")

    def add_spelled(self, tokens: Mapping[str, int]) -> None:
        """Add how often a text spells which special tokens."""
        for token, number in tokens.items():
            self.special_tokens[token] = self.special_tokens.get(token, 0) + number

    def add(self, other: DocumentCounts) -> None:
        """Add the counts of another slice; the first few examples of each reason stay."""
        room = {reason: _EXAMPLES - getattr(self, reason) for reason in REASONS}
        for name in ("documents", *REASONS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for example in other.examples:
            reason = example.split(":", 1)[0]
            if room[reason] > 0:
                room[reason] -= 1
                self.examples.append(example)
        self.add_spelled(other.special_tokens)


def read_documents(
    spec: SourceSpec, counts: DocumentCounts | None = None
) -> Iterator[Document]:
    """All documents of a source in order; `counts` is filled on the way."""
    for shard in plan_shards(find_inputs(spec.inputs).files, spec):
        for part in shard:
            yield from read_slice(
                part, spec, counts if counts is not None else DocumentCounts()
            )


def read_slice(
    part: Slice, spec: SourceSpec, counts: DocumentCounts
) -> Iterator[Document]:
    """Documents of one slice in bounded memory (about twice max_document_bytes; for
    Parquet one batch of rows).

    What is left out goes into `counts`. Raises DataError for a file that cannot be read
    to its end (a broken or cut-off gzip, zstd or Parquet file) and for a slice in which
    no record at all has the text field.
    """
    own = DocumentCounts()
    reader = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[
        part.kind
    ]
    for document in reader(part, spec, own):
        if document.text.strip():
            own.documents += 1
            yield document
        else:
            own.leave_out("empty", document.id)
    if own.missing_text and not own.documents + own.empty:
        raise DataError(
            f"{part.file}: none of {own.missing_text} records has text under the key "
            f"{spec.text_key!r} "
            f"({own.examples[0]}); set text_key to the field that holds it"
        )
    counts.add(own)


def _read_text(
    part: Slice, spec: SourceSpec, counts: DocumentCounts
) -> Iterator[Document]:
    with open_bytes(part.file) as stream:
        raw = stream.read(spec.max_document_bytes + 1)
    if len(raw) > spec.max_document_bytes:
        counts.leave_out("too_long", part.file)
        return
    text = _decode(raw)
    if text is None:
        counts.leave_out("invalid_utf8", part.file)
        return
    yield Document(text, part.file, part.file)


def _read_jsonl(
    part: Slice, spec: SourceSpec, counts: DocumentCounts
) -> Iterator[Document]:
    # A JSON line is longer than its text (escapes, other fields), so the line may take
    # twice the text's limit.
    with open_bytes(part.file) as stream:
        for position, line in _lines(stream, part, 2 * spec.max_document_bytes):
            where = f"{part.file}@{position}"
            if line is None:
                counts.leave_out("too_long", where)
            elif line.strip():
                document = _parse_line(line, where, part.file, spec, counts)
                if document is not None:
                    yield document


def _lines(
    stream: ByteStream, part: Slice, limit: int
) -> Iterator[tuple[int, bytes | None]]:
    """(byte position, line) of the lines that begin inside the slice;

    None for a line above `limit` bytes.
    """
    position = 0
    compressed = Path(part.file).suffix in COMPRESSIONS
    if part.start:
        stream.seek(part.start - 1)
        position = part.start - 1 + _skip_line(stream, limit)
    while compressed or position < part.stop:
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


def _parse_line(
    line: bytes, where: str, file: str, spec: SourceSpec, counts: DocumentCounts
) -> Document | None:
    decoded = _decode(line)
    if decoded is None:
        counts.leave_out("invalid_utf8", where)
        return None
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError):
        counts.leave_out("invalid_json", where)
        return None
    text = record.get(spec.text_key) if isinstance(record, dict) else None
    if not isinstance(text, str):
        fields = (
            ", ".join(map(repr, list(record)[:8]))
            if isinstance(record, dict)
            else "no object"
        )
        counts.leave_out("missing_text", f"{where} (has {fields or 'no fields'})")
        return None
    if "\\ud" in decoded.lower() and not _encodable(
        text
    ):  # an escaped lone surrogate is no character
        counts.leave_out("invalid_utf8", where)
        return None
    if (
        len(text) > spec.max_document_bytes // 4
        and len(text.encode()) > spec.max_document_bytes
    ):
        counts.leave_out("too_long", where)
        return None
    return Document(
        text, _identity(record.get(spec.id_key) if spec.id_key else None, where), file
    )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity(value: object, otherwise: str) -> str:
    text = (
        otherwise
        if value is None
        else value
        if isinstance(value, str)
        else json.dumps(value)
    )
    return text.encode("utf-8", "replace").decode()


def _decode(raw: bytes) -> str | None:
    try:
        return raw.removeprefix(_UTF8_BOM).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _read_parquet(
    part: Slice, spec: SourceSpec, counts: DocumentCounts
) -> Iterator[Document]:
    columns = [spec.text_key, *([spec.id_key] if spec.id_key else [])]
    with open_parquet(part.file, spec.text_key, spec.id_key) as parquet:
        row = sum(
            parquet.metadata.row_group(group).num_rows for group in range(part.start)
        )
        groups = list(range(part.start, part.stop))
        for batch in parquet.iter_batches(
            batch_size=256, row_groups=groups, columns=columns
        ):
            yield from _parquet_rows(batch, row, part.file, spec, counts)
            row += batch.num_rows


def _parquet_rows(
    batch: Any, row: int, file: str, spec: SourceSpec, counts: DocumentCounts
) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.compute as pc

    # As bytes: Arrow does not check that a string column is UTF-8, and a bad value must
    # not stop the rest.
    texts = batch.column(0).cast(pa.large_string()).cast(pa.large_binary())
    sizes = pc.binary_length(texts).to_pylist()
    ids = batch.column(1).to_pylist() if spec.id_key else [None] * batch.num_rows
    for number, size in enumerate(sizes):
        where = f"{file}#{row + number}"
        if size is None:
            counts.leave_out("missing_text", f"{where} (null)")
        elif size > spec.max_document_bytes:
            counts.leave_out("too_long", where)
        elif (text := _decode(texts[number].as_py())) is None:
            counts.leave_out("invalid_utf8", where)
        else:
            yield Document(text, _identity(ids[number], where), file)
