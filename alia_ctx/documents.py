"""Input files -> documents: plain text, JSON lines and Parquet, in slices that can be read on their own."""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from alia_ctx.errors import DataError, Problem

Kind = Literal["text", "jsonl", "parquet"]
_KINDS: dict[str, Kind] = {
    ".txt": "text", ".md": "text", ".rst": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
_COMPRESSIONS = (".gz", ".zst")
SUPPORTED = ".txt .md .rst .jsonl .ndjson (each also .gz or .zst) and .parquet"
_EXAMPLES = 5
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SourceSpec:
    """Where one source of documents comes from: `data.sources.NAME` in the configuration.

    inputs: files, directories (read recursively) and globs; see SUPPORTED for the suffixes.
    text_key, id_key: field of a JSON line, or column of a Parquet file; without `id_key` a document is called
    FILE@BYTE, FILE#ROW or FILE.
    store: prefix of a Megatron `.bin`/`.idx` pair to use as it is, instead of `inputs`.
    max_document_bytes: longer documents are left out, counted and named; a tokenizer needs some 50 times a
    document's size in memory.
    """

    inputs: list[str] = field(default_factory=list)
    text_key: str = "text"
    id_key: str | None = None
    store: str | None = None
    max_document_bytes: int = 32 << 20

    def problems(self, key: str) -> list[Problem]:
        """Rules that this source breaks, missing files among them; `key` is its place in the configuration."""
        if self.store is not None:
            return self._store_problems(key, self.store)
        if not self.inputs:
            return [Problem(f"{key}.inputs", [], "a source needs inputs or a store", f"list files: {SUPPORTED}")]
        found = []
        if self.max_document_bytes < 1:
            found.append(Problem(f"{key}.max_document_bytes", self.max_document_bytes, "must be positive",
                                 f"{32 << 20} is the default"))  # fmt: skip
        try:
            find_inputs(self.inputs)
        except DataError as error:
            found.append(Problem(f"{key}.inputs", self.inputs, str(error), "correct the path"))
        return found

    def _store_problems(self, key: str, store: str) -> list[Problem]:
        if self.inputs:
            return [Problem(f"{key}.store", store, "is given together with inputs", "keep one of the two")]
        return [
            Problem(f"{key}.store", store, f"{store}{suffix} does not exist", "give the prefix of a .bin/.idx pair")
            for suffix in (".bin", ".idx")
            if not Path(store + suffix).is_file()
        ]


@dataclass(frozen=True)
class Document:
    """One document: its text, its id, and the file that it came from."""

    text: str
    id: str
    file: str


@dataclass
class DocumentCounts:
    """How many documents were read, and how many were left out for which reason; `examples` names a few."""

    documents: int = 0
    empty: int = 0
    invalid_utf8: int = 0
    invalid_json: int = 0
    missing_text: int = 0
    too_long: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> int:
        return self.empty + self.invalid_utf8 + self.invalid_json + self.missing_text + self.too_long

    def leave_out(self, reason: str, where: str) -> None:
        """Count one document as left out for `reason`, a field of this class."""
        number = getattr(self, reason) + 1
        setattr(self, reason, number)
        if number <= _EXAMPLES:
            self.examples.append(f"{reason}: {where}")

    def add(self, other: DocumentCounts) -> None:
        """Add the counts of another slice; the first few examples of each reason stay."""
        room = {name: max(0, _EXAMPLES - number) for name, number in asdict(self).items() if name != "examples"}
        for name in room:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for example in other.examples:
            reason = example.split(":", 1)[0]
            if room[reason] > 0:
                room[reason] -= 1
                self.examples.append(example)


class _ByteStream(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def readline(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


@dataclass(frozen=True)
class Inputs:
    """Input files in reading order, and the files of given directories that no reader takes."""

    files: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Slice:
    """A part of a file: bytes [start, stop) of plain JSON lines, row groups of Parquet, or the whole of the rest."""

    file: str
    kind: Kind
    start: int
    stop: int
    size: int  # bytes on disk, for progress


def find_inputs(patterns: Sequence[str]) -> Inputs:
    """Resolve files, directories and globs, each sorted by name, without repeats.

    Raises DataError for a pattern without a readable file: missing path, empty directory, unknown suffix.
    """
    files: dict[str, None] = {}
    ignored: dict[str, None] = {}
    for pattern in patterns:
        matches = _matches(pattern)
        readable = [name for name in matches if _kind(name) is not None]
        if not readable:
            detail = f"holds none of the supported files ({SUPPORTED})" if matches else "matches no file"
            raise DataError(f"{pattern}: {detail}; give files, directories or globs that exist")
        files.update(dict.fromkeys(readable))
        ignored.update(dict.fromkeys(name for name in matches if _kind(name) is None))
    return Inputs(tuple(files), tuple(ignored))


def _matches(pattern: str) -> list[str]:
    path = Path(pattern)
    if path.is_dir():
        found = [entry for entry in path.rglob("*") if entry.is_file() and not _hidden(entry.relative_to(path))]
        return sorted(str(entry) for entry in found)
    if path.is_file():
        return [pattern]
    return sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(name: str) -> Kind | None:
    path = Path(name)
    if path.suffix in _COMPRESSIONS:
        inner = _KINDS.get(Path(path.stem).suffix)
        return None if inner == "parquet" else inner
    return _KINDS.get(path.suffix)


def plan_shards(files: Sequence[str], spec: SourceSpec, shard_bytes: int = 64 << 20) -> list[tuple[Slice, ...]]:
    """Cut the files in shards of about `shard_bytes` on disk; a shard can be redone without the others.

    Plain JSON lines are cut anywhere (a slice reads the lines that begin in it), Parquet between row groups;
    compressed and text files stay whole, small ones share a shard. The result depends on nothing but the files.
    Raises DataError for a Parquet file that is broken or lacks the text column.
    """
    shards: list[tuple[Slice, ...]] = []
    current: list[Slice] = []
    for part in (part for name in files for part in _slices(name, spec, shard_bytes)):
        if current and sum(each.size for each in current) + part.size > shard_bytes:
            shards.append(tuple(current))
            current = []
        current.append(part)
    return [*shards, tuple(current)] if current else shards


def _slices(name: str, spec: SourceSpec, shard_bytes: int) -> list[Slice]:
    kind = _kind(name)
    if kind is None:
        raise DataError(f"{name}: unknown suffix; supported are {SUPPORTED}")
    size = Path(name).stat().st_size
    if kind == "parquet":
        return _parquet_slices(name, spec, size, shard_bytes)
    if kind == "text" or Path(name).suffix in _COMPRESSIONS or size <= shard_bytes:
        return [Slice(name, kind, 0, size, size)]
    stops = [*range(shard_bytes, size, shard_bytes), size]
    starts = [0, *stops[:-1]]
    return [Slice(name, kind, start, stop, stop - start) for start, stop in zip(starts, stops, strict=True)]


def _parquet_slices(name: str, spec: SourceSpec, size: int, shard_bytes: int) -> list[Slice]:
    with _open_parquet(name, spec) as parquet:
        groups = parquet.metadata.num_row_groups
    if groups == 0:
        return [Slice(name, "parquet", 0, 0, size)]
    step = max(1, groups * shard_bytes // max(size, 1))
    return [
        Slice(name, "parquet", start, min(start + step, groups), size * (min(start + step, groups) - start) // groups)
        for start in range(0, groups, step)
    ]


def read_documents(spec: SourceSpec, counts: DocumentCounts | None = None) -> Iterator[Document]:
    """All documents of a source in order; `counts` is filled on the way."""
    for shard in plan_shards(find_inputs(spec.inputs).files, spec):
        for part in shard:
            yield from read_slice(part, spec, counts if counts is not None else DocumentCounts())


def read_slice(part: Slice, spec: SourceSpec, counts: DocumentCounts) -> Iterator[Document]:
    """Documents of one slice in bounded memory (about twice max_document_bytes; for Parquet one batch of rows).

    What is left out goes into `counts`. Raises DataError for a file that cannot be read to its end (a broken or
    cut-off gzip, zstd or Parquet file) and for a slice in which no record at all has the text field.
    """
    own = DocumentCounts()
    reader = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[part.kind]
    for document in reader(part, spec, own):
        if document.text.strip():
            own.documents += 1
            yield document
        else:
            own.leave_out("empty", document.id)
    if own.missing_text and not own.documents + own.empty:
        raise DataError(
            f"{part.file}: none of {own.missing_text} records has text under the key {spec.text_key!r} "
            f"({own.examples[0]}); set text_key to the field that holds it"
        )
    counts.add(own)


def _read_text(part: Slice, spec: SourceSpec, counts: DocumentCounts) -> Iterator[Document]:
    with _open_bytes(part.file) as stream:
        raw = stream.read(spec.max_document_bytes + 1)
    if len(raw) > spec.max_document_bytes:
        counts.leave_out("too_long", part.file)
        return
    text = _decode(raw)
    if text is None:
        counts.leave_out("invalid_utf8", part.file)
        return
    yield Document(text, part.file, part.file)


def _read_jsonl(part: Slice, spec: SourceSpec, counts: DocumentCounts) -> Iterator[Document]:
    # A JSON line is longer than its text (escapes, other fields), so the line may take twice the text's limit.
    with _open_bytes(part.file) as stream:
        for position, line in _lines(stream, part, 2 * spec.max_document_bytes):
            where = f"{part.file}@{position}"
            if line is None:
                counts.leave_out("too_long", where)
            elif line.strip():
                document = _parse_line(line, where, part.file, spec, counts)
                if document is not None:
                    yield document


def _lines(stream: _ByteStream, part: Slice, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """(byte position, line) of the lines that begin inside the slice; None for a line above `limit` bytes."""
    position = 0
    compressed = Path(part.file).suffix in _COMPRESSIONS
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


def _skip_line(stream: _ByteStream, block: int) -> int:
    skipped = 0
    while piece := stream.readline(min(block, 1 << 20)):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _parse_line(line: bytes, where: str, file: str, spec: SourceSpec, counts: DocumentCounts) -> Document | None:
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
        fields = ", ".join(map(repr, list(record)[:8])) if isinstance(record, dict) else "no object"
        counts.leave_out("missing_text", f"{where} (has {fields or 'no fields'})")
        return None
    if "\\ud" in decoded.lower() and not _encodable(text):  # an escaped lone surrogate is no character
        counts.leave_out("invalid_utf8", where)
        return None
    if len(text) > spec.max_document_bytes // 4 and len(text.encode()) > spec.max_document_bytes:
        counts.leave_out("too_long", where)
        return None
    return Document(text, _identity(record.get(spec.id_key) if spec.id_key else None, where), file)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity(value: object, otherwise: str) -> str:
    text = otherwise if value is None else value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()


def _decode(raw: bytes) -> str | None:
    try:
        return raw.removeprefix(_UTF8_BOM).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _read_parquet(part: Slice, spec: SourceSpec, counts: DocumentCounts) -> Iterator[Document]:
    columns = [spec.text_key, *([spec.id_key] if spec.id_key else [])]
    with _open_parquet(part.file, spec) as parquet:
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(part.start))
        groups = list(range(part.start, part.stop))
        for batch in parquet.iter_batches(batch_size=256, row_groups=groups, columns=columns):
            yield from _parquet_rows(batch, row, part.file, spec, counts)
            row += batch.num_rows


def _parquet_rows(batch: Any, row: int, file: str, spec: SourceSpec, counts: DocumentCounts) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.compute as pc

    # As bytes: Arrow does not check that a string column is UTF-8, and a bad value must not stop the rest.
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


@contextmanager
def _open_parquet(name: str, spec: SourceSpec) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(name) as parquet:
            schema = parquet.schema_arrow
            for key in filter(None, (spec.text_key, spec.id_key)):
                if key not in schema.names:
                    raise DataError(f"{name}: no column {key!r}, only {', '.join(schema.names)}; set text_key/id_key")
            kind = schema.field(spec.text_key).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"{name}: column {spec.text_key!r} holds {kind}, not strings; set text_key")
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be read as Parquet ({error}); restore or remove the file") from error


@contextmanager
def _open_bytes(name: str) -> Iterator[_ByteStream]:
    """The file's bytes, decompressed by suffix; what goes wrong while reading becomes a DataError."""
    import pyarrow as pa

    suffix = Path(name).suffix
    try:
        with open(name, "rb") as raw:
            if suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream
            elif suffix == ".zst":
                # Arrow's reader has bounded output and an error on a cut-off frame; zstandard's have one or the other.
                with io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), 1 << 20) as stream:
                    yield stream
            else:
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name}: broken or cut-off compressed file ({error}); restore or remove it") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error}); restore or remove it") from error
