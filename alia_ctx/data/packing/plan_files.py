"""A pack plan's directory: one array a file, and `plan.json`, which states what the plan
was made from and protects the arrays and itself by checksums.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from alia_ctx.data.packing.continued import seen_in_words
from alia_ctx.data.packing.remedy import command_for
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError
from alia_ctx.files import checksum, file_checksum, parse_json, remove_own, write_json

FORMAT = 2
STATEMENT = "plan.json"
_ARRAYS_OF_FORMAT_1: dict[str, np.dtype] = {
    # [rows + 1] first piece of each row
    "row_offsets": np.dtype(np.int64),
    # [rows] query-key pairs of causal attention
    "row_pairs": np.dtype(np.int64),
    # [pieces] number of the document, all sources counted through
    "piece_documents": np.dtype(np.int64),
    # [pieces] first token of the piece in its document
    "piece_starts": np.dtype(np.uint32),
    # [pieces] tokens
    "piece_lengths": np.dtype(np.int32),
}
ARRAYS: dict[str, np.dtype] = {
    **_ARRAYS_OF_FORMAT_1,
    # [rows] positions that have a target
    "row_predicted": np.dtype(np.int64),
    # [updates + 1] first row of each update
    "update_offsets": np.dtype(np.int64),
}


@dataclass(frozen=True)
class Statement:
    """What a plan says of itself in `plan.json`.

    format: 2, or 1 for a plan of version 0.1, which lacks `row_predicted` and
        `update_offsets`.
    identity: what the plan was made from and the settings that decide its content.
    sizes, checksums: entries and xxh3_128 of the file of each array.
    fingerprint: xxh3_128 of identity and checksums, in hex.
    shorter: of each plan that this one began as, before rows were added, what its
        fingerprint is made of: see `begins_with`.
    written: the identity as it stands in the file, which the fingerprint is made of.
    """

    directory: Path
    format: int
    identity: dict[str, Any]
    sizes: dict[str, int]
    checksums: dict[str, str]
    fingerprint: str
    stats: dict[str, Any]
    shorter: list[dict[str, Any]]
    written: dict[str, Any]

    def fingerprint_with(self, stores: list[list[str]]) -> str:
        """The fingerprint of this plan over `stores`: (name, fingerprint) of each."""
        return _fingerprint({**self.written, "stores": stores}, self.checksums)

    def as_trained(self, fingerprint: str | None = None) -> dict[str, Any] | None:
        """What a checkpoint keeps of it, so that it can be made again: `as_shorter`, and
        `shorter`. The same of the plan `fingerprint` that it began as; None where it did
        not.
        """
        plans = self.plans
        for number, plan in enumerate(plans):
            if fingerprint in (None, plan["fingerprint"]):
                return {**plan, "shorter": plans[number + 1 :]}
        return None

    @property
    def plans(self) -> list[dict[str, Any]]:
        """`as_shorter`, and `shorter`."""
        return [self.as_shorter(), *self.shorter]

    def as_shorter(self) -> dict[str, Any]:
        """What a plan that begins with this one's rows keeps of it."""
        return {
            "fingerprint": self.fingerprint,
            "identity": self.written,
            "entries": self.sizes,
        }


@dataclass(frozen=True)
class PackedRows:
    """The arrays of a plan, but for its updates: see ARRAYS."""

    row_offsets: np.ndarray
    row_pairs: np.ndarray
    row_predicted: np.ndarray
    piece_documents: np.ndarray
    piece_starts: np.ndarray
    piece_lengths: np.ndarray

    def __len__(self) -> int:
        return self.row_pairs.size


def way_out(directory: Path) -> str:
    """The command that makes a stage's plan anew."""
    return f"run `{command_for(directory)} --overwrite`"


def is_plan(directory: Path) -> bool:
    return (directory / STATEMENT).is_file()


def _replaced(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.replaced")


def recover(directory: Path) -> None:
    """Give a plan its name back that was being replaced when the process was killed."""
    directory = directory.resolve()
    if is_plan(_replaced(directory)) and not directory.exists():
        _replaced(directory).rename(directory)


def foreign_files(directory: Path) -> list[str]:
    """Names in `directory` that no plan has; nobody may overwrite those."""
    if not directory.is_dir():
        return [directory.name] if directory.exists() else []
    return sorted(p.name for p in directory.iterdir() if not _is_own(p.name))


def _is_own(name: str) -> bool:
    """Whether a file of that name is one of a plan, or of one being written."""
    ours = {STATEMENT, *(f"{array}.npy" for array in ARRAYS)}
    return name in ours or name.startswith(f".{STATEMENT}.")


def read_statement(directory: Path) -> Statement:
    """The statement of a plan, compared with its own checksum.

    DataError where there is none, where a bit of it is not what was written, and where
    it is of another version.
    """
    path = directory / STATEMENT
    if not is_plan(directory):
        raise DataError(f"{directory}: holds no pack plan; {way_out(directory)}")
    try:
        raw = path.read_bytes()
        note = parse_json(raw)
        version = note["identity"]["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: broken plan ({error!r}); {way_out(directory)}"
        ) from error
    if version == 1:
        return _statement_of_format_1(directory, note)
    if version != FORMAT:
        raise DataError(
            f"{path}: plan format {version}, this version reads {FORMAT} and 1; "
            f"{way_out(directory)}"
        )
    try:
        own = note.pop("checksum")
        sizes = {name: note["arrays"][name]["entries"] for name in ARRAYS}
        checksums = {name: note["arrays"][name]["checksum"] for name in ARRAYS}
        whole = own == _checksum_of(note) and raw == _json_bytes(
            {**note, "checksum": own}
        )
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise DataError(
            f"{path}: is not what was written (its checksum differs); "
            f"{way_out(directory)}"
        )
    return Statement(
        directory, FORMAT, note["identity"], sizes, checksums, note["fingerprint"],
        note["stats"], note["shorter"], note["identity"],
    )  # fmt: skip


def _statement_of_format_1(directory: Path, note: dict[str, Any]) -> Statement:
    """A plan of version 0.1, in today's words; its fingerprint stays, as ledgers name it."""
    path = directory / STATEMENT
    try:
        written, sizes, checksums = note["identity"], note["arrays"], note["checksums"]
        if note["fingerprint"] != _fingerprint(written, checksums):
            raise DataError(
                f"{path}: is not what was written (its fingerprint differs); "
                f"{way_out(directory)}"
            )
        spec = dict(written["spec"])
        held_out = spec.pop("holdout_documents") or written["held_out"]
        del spec["holdout_min_tokens"], spec["holdout_seed"]
        identity = {
            **{name: written[name] for name in ("format", "stores", "seed", "rows")},
            "spec": {**spec, "drop_contaminated": False},
            "row_length": written["row_length"],
            "padding_id": written["fill_id"],
            "seen": [],
            "parts": [],
        }
        statement = Statement(
            directory, 1, identity, sizes, checksums, note["fingerprint"],
            note["stats"], [], written,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: broken plan ({error!r}); {way_out(directory)}"
        ) from error
    if held_out:
        raise DataError(
            f"{path}: this plan of version 0.1 held documents out by "
            "pack.holdout_documents, which is no longer done; name the held-out text "
            f"under evaluation.held_out and {way_out(directory)}"
        )
    return statement


def load_arrays(statement: Statement, *, verify: bool) -> dict[str, np.ndarray]:
    """The arrays of a plan, mapped; DataError for one that is missing or cut off, and with
    `verify` for one of which any bit is not what was written.
    """
    types = ARRAYS if statement.format == FORMAT else _ARRAYS_OF_FORMAT_1
    arrays = {}
    for name, dtype in types.items():
        path, size = statement.directory / f"{name}.npy", statement.sizes[name]
        try:
            whole = not verify or file_checksum(path) == statement.checksums[name]
            if whole:
                mode: Literal["r"] | None = "r" if size else None
                array = np.load(path, mmap_mode=mode, allow_pickle=False)
        # numpy reads a header as Python: a broken one raises tokenize.TokenError,
        # SyntaxError and others, beside ValueError (read_array_header_1_0 and its
        # helpers in numpy.lib.format).
        except Exception as error:
            raise DataError(
                f"{path}: missing or broken ({error}); {way_out(statement.directory)}"
            ) from error
        if not whole:
            raise DataError(
                f"{path}: is not what was written (its checksum differs); "
                f"{way_out(statement.directory)}"
            )
        if array.shape != (size,) or array.dtype != dtype:
            raise DataError(
                f"{path}: holds {array.dtype}{list(array.shape)}, not {dtype}[{size}]; "
                f"{way_out(statement.directory)}"
            )
        # a plain array over the map: slicing np.memmap itself is slow
        arrays[name] = np.asarray(array)
    return arrays


def write_plan(
    directory: Path,
    identity: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    stats: Mapping[str, Any],
    shorter: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a plan under a temporary name and rename it: it is whole or not there.

    A plan that is replaced keeps its place until the new one is whole: it may hold the
    rows that the new one must begin with. DataError where the directory cannot be
    written.
    """
    directory = directory.resolve()  # through a link, to what it stands for
    partial = directory.with_name(f".{directory.name}.partial")
    replaced = _replaced(directory)
    try:
        for leftover in (partial, replaced):
            remove_own(leftover, _is_own)
        partial.mkdir(parents=True)
        entries: dict[str, dict[str, Any]] = {}
        for name, dtype in ARRAYS.items():
            array = arrays[name].astype(dtype, copy=False)
            np.save(partial / f"{name}.npy", array)
            entries[name] = {
                "entries": array.size,
                "checksum": file_checksum(partial / f"{name}.npy"),
            }
        checksums = {name: entry["checksum"] for name, entry in entries.items()}
        fingerprint = _fingerprint({**identity, "format": FORMAT}, checksums)
        note = {
            "identity": {**identity, "format": FORMAT},
            "arrays": entries,
            "fingerprint": fingerprint,
            "stats": stats,
            "shorter": [s for s in shorter if s["fingerprint"] != fingerprint],
        }
        write_json(partial / STATEMENT, {**note, "checksum": _checksum_of(note)})
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{directory}: the plan cannot be written ({error}); check the folder, "
            "space and quota"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        recover(directory)


def _json_bytes(note: Mapping[str, Any]) -> bytes:
    """As files.write_json writes it."""
    text = json.dumps(note, indent=1, sort_keys=True, ensure_ascii=False)
    return text.encode() + b"\n"


def _checksum_of(note: Mapping[str, Any]) -> str:
    return checksum(_json_bytes(note))


def _fingerprint(identity: Mapping[str, Any], checksums: Mapping[str, str]) -> str:
    return checksum(json.dumps([identity, checksums], sort_keys=True).encode())


def begins_with(arrays: Mapping[str, np.ndarray], shorter: Mapping[str, Any]) -> bool:
    """Whether the first entries of `arrays` are the arrays of the plan `shorter` (see
    Statement.as_shorter), to the last bit: its fingerprint is computed again from them.
    """
    checksums = {}
    for name, entries in shorter["entries"].items():
        array = np.ascontiguousarray(arrays[name][:entries])
        header = io.BytesIO()
        described = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(header, described)
        digest = xxhash.xxh3_128(header.getvalue())
        digest.update(memoryview(array).cast("B") if array.size else b"")
        checksums[name] = digest.hexdigest()
    return bool(_fingerprint(shorter["identity"], checksums) == shorter["fingerprint"])


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """One line per leaf of `new` that is not the same in `old`; keys that `new` lacks
    do not matter at the top.
    """
    lines: list[str] = []
    for key, value in new.items():
        before = old.get(key)
        if key == "stores":
            lines += _store_differences(before or [], value)
        elif key == "seen" and before != value:
            lines.append(
                f"continues the data of {seen_in_words(before)} in the plan, of "
                f"{seen_in_words(value)} now"
                + (" (pack.data: restart keeps such a plan)" if not before else "")
            )
        elif isinstance(value, dict) and isinstance(before, dict):
            missing = {name: None for name in before if name not in value}
            lines += differences(before, {**value, **missing}, f"{prefix}{key}.")
        elif before != value:
            lines.append(f"{prefix}{key}: {before} in the plan, {value} now")
    return lines


def stores_as_named(
    stores: Mapping[str, TokenStore], named: Sequence[Sequence[str]]
) -> list[list[str]]:
    """(name, fingerprint) of each store, that of a plan's statement where it is one of
    the store's content.
    """
    there = {name: fingerprint for name, fingerprint in named}
    return [
        [name, there[name]]
        if name in there and store.is_called(there[name])
        else [name, store.fingerprint]
        for name, store in stores.items()
    ]


def _store_differences(old: list[list[str]], new: list[list[str]]) -> list[str]:
    if [name for name, _ in old] != [name for name, _ in new]:
        return [
            f"sources: {', '.join(name for name, _ in old)} in the plan, "
            f"{', '.join(name for name, _ in new)} now"
        ]
    return [
        f"store {name}: content {before} in the plan, {after} now"
        for (name, before), (_, after) in zip(old, new, strict=True)
        if before != after
    ]
