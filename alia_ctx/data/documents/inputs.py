"""What a source is: its specification, its files, and their cut in shards that can be
read on their own.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alia_ctx.data.documents.containers import open_parquet
from alia_ctx.errors import DataError, Problem

Kind = Literal["text", "jsonl", "parquet"]
_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".zst")
SUPPORTED = ".txt .md .rst .jsonl .ndjson (each also .gz or .zst) and .parquet"


@dataclass(frozen=True)
class SourceSpec:
    """Where one source of documents comes from: `data.sources.NAME` in the configuration.

    inputs: files, directories (read recursively) and globs; see SUPPORTED for the suffixes.
    text_key, id_key: field of a JSON line, or column of a Parquet file; without
    `id_key` a document is called FILE@BYTE, FILE#ROW or FILE.
    store: prefix of a Megatron `.bin`/`.idx` pair to use as it is, instead of `inputs`.
    max_document_bytes: longer documents are left out, counted and named; a tokenizer
    needs some 50 times a document's size in memory.
    """

    inputs: list[str] = field(default_factory=list)
    text_key: str = "text"
    id_key: str | None = None
    store: str | None = None
    max_document_bytes: int = 32 << 20

    def problems(self, key: str) -> list[Problem]:
        """Rules that this source breaks, missing files among them;

        `key` is its place in the configuration.
        """
        if self.store is not None:
            return self._store_problems(key, self.store)
        if not self.inputs:
            return [
                Problem(
                    f"{key}.inputs",
                    [],
                    "a source needs inputs or a store",
                    f"list files: {SUPPORTED}",
                )
            ]
        found = []
        if self.max_document_bytes < 1:
            found.append(
                Problem(
                    f"{key}.max_document_bytes",
                    self.max_document_bytes,
                    "must be positive",
                    f"{32 << 20} is the default",
                )
            )
        try:
            find_inputs(self.inputs)
        except DataError as error:
            found.append(
                Problem(f"{key}.inputs", self.inputs, str(error), "correct the path")
            )
        return found

    def _store_problems(self, key: str, store: str) -> list[Problem]:
        if self.inputs:
            return [
                Problem(
                    f"{key}.store",
                    store,
                    "is given together with inputs",
                    "keep one of the two",
                )
            ]
        return [
            Problem(
                f"{key}.store",
                store,
                f"{store}{suffix} does not exist",
                "give the prefix of a .bin/.idx pair",
            )
            for suffix in (".bin", ".idx")
            if not Path(store + suffix).is_file()
        ]


@dataclass(frozen=True)
class Inputs:
    """Input files in reading order, and the files of given directories that no reader takes."""

    files: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Slice:
    """A part of a file: bytes [start, stop) of plain JSON lines, row groups of Parquet,
    or the whole of the rest.
    """

    file: str
    kind: Kind
    start: int
    stop: int
    size: int  # bytes on disk, for progress


def find_inputs(patterns: Sequence[str]) -> Inputs:
    """Resolve files, directories and globs, each sorted by name, without repeats.

    Raises DataError for a pattern without a readable file: missing path, empty
    directory, unknown suffix.
    """
    files: dict[str, None] = {}
    ignored: dict[str, None] = {}
    for pattern in patterns:
        matches = _matches(pattern)
        readable = [name for name in matches if _kind(name) is not None]
        if not readable:
            detail = (
                f"holds none of the supported files ({SUPPORTED})"
                if matches
                else "matches no file"
            )
            raise DataError(
                f"{pattern}: {detail}; give files, directories or globs that exist"
            )
        files.update(dict.fromkeys(readable))
        ignored.update(dict.fromkeys(name for name in matches if _kind(name) is None))
    return Inputs(tuple(files), tuple(ignored))


def _matches(pattern: str) -> list[str]:
    path = Path(pattern)
    if path.is_dir():
        found = [
            entry
            for entry in path.rglob("*")
            if entry.is_file() and not _hidden(entry.relative_to(path))
        ]
        return sorted(str(entry) for entry in found)
    if path.is_file():
        return [pattern]
    return sorted(
        name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(name: str) -> Kind | None:
    path = Path(name)
    if path.suffix in COMPRESSIONS:
        inner = _KINDS.get(Path(path.stem).suffix)
        return None if inner == "parquet" else inner
    return _KINDS.get(path.suffix)


def plan_shards(
    files: Sequence[str], spec: SourceSpec, shard_bytes: int = 64 << 20
) -> list[tuple[Slice, ...]]:
    """Cut the files in shards of about `shard_bytes` on disk; a shard can be redone
    without the others.

    Plain JSON lines are cut anywhere (a slice reads the lines that begin in it),
    Parquet between row groups; compressed and text files stay whole, small ones share a
    shard. The result depends on nothing but the files. Raises DataError for a Parquet
    file that is broken or lacks the text column.
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
    if kind == "text" or Path(name).suffix in COMPRESSIONS or size <= shard_bytes:
        return [Slice(name, kind, 0, size, size)]
    stops = [*range(shard_bytes, size, shard_bytes), size]
    starts = [0, *stops[:-1]]
    return [
        Slice(name, kind, start, stop, stop - start)
        for start, stop in zip(starts, stops, strict=True)
    ]


def _parquet_slices(
    name: str, spec: SourceSpec, size: int, shard_bytes: int
) -> list[Slice]:
    with open_parquet(name, spec.text_key, spec.id_key) as parquet:
        groups = parquet.metadata.num_row_groups
    if groups == 0:
        return [Slice(name, "parquet", 0, 0, size)]
    step = max(1, groups * shard_bytes // max(size, 1))
    return [
        Slice(
            name,
            "parquet",
            start,
            min(start + step, groups),
            size * (min(start + step, groups) - start) // groups,
        )
        for start in range(0, groups, step)
    ]
