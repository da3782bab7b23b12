"""What a source is: its specification, and the files that its inputs name."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alia_ctx.data.documents.chat_spec import ChatSpec
from alia_ctx.data.documents.containers import COMPRESSIONS
from alia_ctx.errors import DataError, Problem

Format = Literal["text", "json", "jsonl", "parquet"]
_FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".rst": "text",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_NOT_FOLLOWED = "link to a directory, not followed"
_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
# `init` writes it beside a configuration, which may lie among the text.
_SCHEMA = "alia-ctx.schema.json"
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
SUPPORTED = (
    ".txt .md .rst .json .jsonl .ndjson (each also .gz, .zst, .xz or .bz2) and .parquet"
)


@dataclass(frozen=True)
class SourceSpec:
    """Where one source of documents comes from: `data.sources.NAME` in the configuration.

    inputs: files, directories (read recursively) and globs; see SUPPORTED for the suffixes.
    text_key, id_key: field of a JSON record, or column of a Parquet file; without
    `id_key` a document is called FILE@BYTE, FILE#RECORD or FILE.
    store: prefix of a Megatron `.bin`/`.idx` pair to use as it is, instead of `inputs`.
    max_document_bytes: longer documents are left out, counted and named; a tokenizer
    needs some 50 times a document's size in memory.
    chat: the records are conversations, of which the assistant's turns are trained.
    instances, licence: how many documents are trained on, and under which terms, as the
    source's publisher states; `plan` shows them beside what is there.
    dataset: its id on the Hugging Face Hub; model cards name it, and the licence.
    """

    inputs: list[str] = field(default_factory=list)
    text_key: str = "text"
    id_key: str | None = None
    store: str | None = None
    max_document_bytes: int = 32 << 20
    chat: ChatSpec | None = None
    instances: int | None = None
    licence: str | None = None
    dataset: str | None = None

    def problems(self, key: str) -> list[Problem]:
        """Rules that this source breaks, missing files among them;

        `key` is its place in the configuration.
        """
        problems = self._name_problems(key)
        if self.store is not None:
            return [*problems, *self._store_problems(key, self.store)]
        if self.chat is not None:
            problems += self.chat.problems(f"{key}.chat")
        if not self.inputs:
            return [
                *problems,
                Problem(
                    f"{key}.inputs",
                    [],
                    "a source needs inputs or a store",
                    f"list files: {SUPPORTED}",
                ),
            ]
        if self.max_document_bytes < 1:
            problems.append(
                Problem(
                    f"{key}.max_document_bytes",
                    self.max_document_bytes,
                    "must be positive",
                    f"{32 << 20} is the default",
                )
            )
        try:
            files = find_inputs(self.inputs).files
            if not any(os.path.getsize(name) for name in files):
                raise DataError("no documents: every file of them is empty")
        except (DataError, OSError) as error:
            problems.append(
                Problem(f"{key}.inputs", self.inputs, str(error), "correct the path")
            )
        return problems

    def _name_problems(self, key: str) -> list[Problem]:
        if self.dataset is None or _HUB_ID.fullmatch(self.dataset):
            return []
        return [
            Problem(
                f"{key}.dataset",
                self.dataset,
                "is no id of the Hugging Face Hub",
                "write it as ORGANISATION/NAME, without an address",
            )
        ]

    def _store_problems(self, key: str, store: str) -> list[Problem]:
        if self.chat is not None:
            return [
                Problem(
                    f"{key}.chat",
                    self.chat,
                    "is given together with a store, which is used as it is",
                    "keep one of the two",
                )
            ]
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
        ] or [
            Problem(
                f"{key}.store",
                store,
                f"{store}.bin is empty: it holds no tokens",
                "give a store with text, or leave the source out",
            )
            for size in [Path(store + ".bin").stat().st_size]
            if not size
        ]


@dataclass(frozen=True)
class Inputs:
    """Input files in reading order, and what else lies there: path -> why it is not read.

    found_by: file -> the pattern that found it, the first of those that name it.
    """

    files: tuple[str, ...]
    ignored: dict[str, str]
    found_by: dict[str, str]


def find_inputs(patterns: Sequence[str]) -> Inputs:
    """Resolve files, directories and globs, each sorted by name; a file is read once,
    whatever links lead to it.

    Raises DataError for a pattern without a readable file (missing path, empty
    directory, unknown suffix) and for a directory that cannot be listed.
    """
    files: dict[tuple[int, int], str] = {}
    ignored: dict[str, str] = {}
    found_by: dict[str, str] = {}
    for pattern in patterns:
        readable = False
        left_out: dict[str, str] = {}
        for name, reason in _matches(pattern):
            reason = reason or _why_unreadable(name)
            if reason is not None:
                left_out[name] = reason
                continue
            readable = True
            status = os.stat(name)
            first = files.setdefault((status.st_dev, status.st_ino), name)
            found_by.setdefault(first, pattern)
            if first != name:
                left_out[name] = f"is the same file as {first}"
        if not readable:
            raise DataError(
                f"{pattern}: {_nothing(left_out)}; give files, directories or globs "
                "that exist"
            )
        ignored.update(left_out)
    return Inputs(tuple(files.values()), ignored, found_by)


def in_utf8(name: str) -> str:
    """The name of a file with bytes that are no UTF-8 written out, as in `caf\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _nothing(left_out: dict[str, str]) -> str:
    if not left_out:
        return "matches no file"
    told = ", ".join(f"{name} ({why})" for name, why in [*left_out.items()][:3])
    return f"holds none of the supported files ({SUPPORTED}); {told}"


def _matches(pattern: str) -> Iterator[tuple[str, str | None]]:
    """(path, why it is not read at all or None), sorted by path."""
    if os.path.isdir(pattern):
        yield from sorted(_walk(Path(pattern)))
    elif os.path.lexists(pattern):
        yield pattern, _why_no_file(pattern)
    elif "**" in (parts := Path(pattern).parts):
        yield from sorted(_recursive(parts))
    else:
        for name in sorted(glob.glob(pattern)):
            yield name, _why_no_file(name)


def _recursive(parts: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """What a glob with `**` matches, and the links to directories on the way, which are
    no more followed than below a directory (`glob.glob` goes round their loops).
    """
    first = parts.index("**")
    rest = parts[first:]
    hidden = any(part.startswith(".") for part in rest)
    for root in glob.glob(str(Path(*parts[:first]))):
        if not os.path.isdir(root):
            continue
        for name, reason in _walk(Path(root), hidden=hidden):
            below = Path(name).relative_to(root).parts
            if reason == _NOT_FOLLOWED or _fits(below, rest):
                yield name, reason


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a glob's parts match those of a path, as `glob.glob` would say."""
    if not pattern:
        return not parts
    shown = bool(parts) and not parts[0].startswith(".")
    if pattern[0] == "**":
        deeper = shown and _fits(parts[1:], pattern)
        return deeper or _fits(parts, pattern[1:])
    shown = shown or pattern[0].startswith(".")
    return (
        bool(parts)
        and shown
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and _fits(parts[1:], pattern[1:])
    )


def _walk(root: Path, *, hidden: bool = False) -> Iterator[tuple[str, str | None]]:
    """(path, why it is not read or None) of the files below a directory. `hidden`: files
    and directories whose names begin with a dot are as good as others.
    """

    def unreadable(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: cannot be listed ({error.strerror}); make it readable or "
            "name the files"
        ) from error

    for folder, folders, names in os.walk(root, onerror=unreadable):
        for name in [*folders]:
            path = Path(folder, name)
            is_hidden = name.startswith(".") and not hidden
            if is_hidden or path.is_symlink():
                folders.remove(name)
                yield str(path), "hidden directory" if is_hidden else _NOT_FOLLOWED
        for name in names:
            path = Path(folder, name)
            is_hidden = name.startswith(".") and not hidden
            yield str(path), "hidden file" if is_hidden else _why_no_file(str(path))


def _why_no_file(name: str) -> str | None:
    if os.path.isfile(name):
        return None
    if os.path.isdir(name):
        return "directory, give it by itself"
    return "broken link" if os.path.islink(name) else "no regular file"


def _why_unreadable(name: str) -> str | None:
    """Why no reader takes a file of this name, None where one does."""
    suffix = Path(name).suffix.lower()
    if Path(name).name == _SCHEMA:
        return "the schema of configurations, no text"
    if suffix in COMPRESSIONS:
        inner = Path(Path(name).stem).suffix.lower()
        if _FORMATS.get(inner) == "parquet":
            return "Parquet in a compressed file, decompress it"
        if inner not in _FORMATS:
            return f"no reader for {inner or 'a name without suffix'} in {suffix}"
        return None
    if suffix in _ARCHIVES:
        return f"{suffix} is an archive, unpack it"
    if suffix not in _FORMATS:
        return f"no reader for {suffix or 'a name without suffix'}"
    return None


def format_of(name: str) -> Format:
    """The format that a file's suffix says; DataError where there is no reader for it."""
    reason = _why_unreadable(name)
    if reason is not None:
        raise DataError(f"{name}: {reason}; supported are {SUPPORTED}")
    path = Path(name)
    suffix = path.suffix.lower()
    return _FORMATS[
        Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix
    ]
