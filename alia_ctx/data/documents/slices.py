"""Files -> slices that can be read on their own, gathered in shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alia_ctx.data.documents.containers import (
    compression_of,
    open_bytes,
)
from alia_ctx.data.documents.inputs import Format, SourceSpec, format_of
from alia_ctx.data.documents.parquet import open_parquet
from alia_ctx.errors import DataError
from alia_ctx.files import parse_json

UTF8_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LINE = 1 << 20
_BLOCK_BYTES = 8 << 20
_SHARD_BYTES = (1 << 20, 64 << 20)
_SHARDS = 1024


@dataclass(frozen=True)
class Slice:
    """A part of a file: bytes [start, stop) of plain JSON lines, row groups of Parquet,
    or all of a file, where `stop` is None.

    format: how it is read; `json` are values one after another or in arrays, over any
    number of lines. size: bytes on disk, for progress. block_bytes: such a slice is one
    stream of much text, which one process reads and many encode, in blocks of so many
    characters of text; None where one process does both.
    """

    file: str
    format: Format
    start: int
    stop: int | None
    size: int
    block_bytes: int | None = None


def usual_shard_bytes(files: Sequence[str]) -> int:
    """Shards for some hundred workers, so that the last ones end together; not so small
    that starting one counts, not so big that much is lost with one: 1 to 64 MiB.
    """
    least, most = _SHARD_BYTES
    total = sum(_file_size(name) for name in files)
    return max(least, min(total // _SHARDS, most))


def _file_size(name: str) -> int:
    try:
        return Path(name).stat().st_size
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error}); restore it") from error


def plan_shards(
    files: Sequence[str], spec: SourceSpec, shard_bytes: int | None = None
) -> list[tuple[Slice, ...]]:
    """Cut the files in shards of about `shard_bytes` on disk, by default of the usual
    size; a shard can be redone without the others.

    Plain JSON lines are cut anywhere (a slice reads the lines that begin in it),
    Parquet between row groups; compressed files, JSON over several lines and text files
    stay whole. Big ones of these that hold many documents are a shard of their own,
    small ones share one. The result depends on nothing but the files. Raises DataError
    for a file that is broken at its start, a Parquet file without the text column.
    """
    shard_bytes = shard_bytes or usual_shard_bytes(files)
    shards: list[tuple[Slice, ...]] = []
    current: list[Slice] = []
    for part in (part for name in files for part in _slices(name, spec, shard_bytes)):
        full = sum(each.size for each in current) + part.size > shard_bytes
        if current and (full or part.block_bytes or current[-1].block_bytes):
            shards.append(tuple(current))
            current = []
        current.append(part)
    return [*shards, tuple(current)] if current else shards


def _slices(name: str, spec: SourceSpec, shard_bytes: int) -> list[Slice]:
    form = format_of(name)
    size = _file_size(name)
    if form == "parquet":
        return _parquet_slices(name, spec, size, shard_bytes)
    if form == "text":
        return [Slice(name, form, 0, None, size)]
    form = json_form(name, form)
    if form == "json" or compression_of(name):
        return [Slice(name, form, 0, None, size, _block_bytes(size, shard_bytes))]
    if size <= shard_bytes:
        return [Slice(name, form, 0, None, size)]
    stops = [*range(shard_bytes, size, shard_bytes), size]
    starts = [0, *stops[:-1]]
    return [
        Slice(name, form, start, stop, stop - start)
        for start, stop in zip(starts, stops, strict=True)
    ]


def _block_bytes(size: int, shard_bytes: int) -> int | None:
    """What is more than a shard is spread in blocks of a shard's size, up to 8 MiB: a
    few of them a worker are in memory at a time.
    """
    return min(shard_bytes, _BLOCK_BYTES) if size > shard_bytes else None


def json_form(name: str, form: Format) -> Format:
    """`jsonl` where a file's first line is a record, `json` where it only begins one.

    Both suffixes are used for both. A `.jsonl` whose first line is broken stays lines,
    so that one bad line costs no more than itself.
    """
    line = _first_line(name)
    if line[:2] in _UTF16:
        raise DataError(
            f"{name}: is UTF-16 by its byte order mark; convert it to UTF-8 "
            "(iconv -f UTF-16 -t UTF-8)"
        )
    if line[:1] not in (b"[", b"{"):
        return "jsonl"
    try:
        value = parse_json(line)
    except ValueError:
        opens = form == "json" or line[:1] == b"[" or line == b"{"
        return "json" if opens else "jsonl"
    records = isinstance(value, list) and value and isinstance(value[0], dict)
    return "json" if records else "jsonl"


def _first_line(name: str) -> bytes:
    """The first line with something in it, or its beginning."""
    with open_bytes(name) as stream:
        line = stream.readline(_LINE).removeprefix(UTF8_BOM)
        while line and not line.strip():
            line = stream.readline(_LINE)
    return line.strip()


def _parquet_slices(
    name: str, spec: SourceSpec, size: int, shard_bytes: int
) -> list[Slice]:
    with open_parquet(name, spec.text_key, spec.id_key) as parquet:
        groups = parquet.metadata.num_row_groups
    if groups == 0:
        return [Slice(name, "parquet", 0, 0, size)]
    step = max(1, groups * shard_bytes // max(size, 1))
    slices = []
    for start in range(0, groups, step):
        stop = min(start + step, groups)
        share = size * (stop - start) // groups
        # One row group cannot be cut; where it is a big one, many encode what one reads.
        block_bytes = _block_bytes(share, shard_bytes) if step == 1 else None
        slices.append(Slice(name, "parquet", start, stop, share, block_bytes))
    return slices
