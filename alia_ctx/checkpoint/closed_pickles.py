"""Pickles of a checkpoint, read without running what they name: only a closed list of
classes is made.

A distributed checkpoint holds pickles in two places: `.metadata`, and the records of
objects (Megatron's common state, extra states) in the `.distcp` files. A pickle is a
program: it may call any function that it can import. So `.metadata` is read by an
unpickler that knows the classes below and no other, and records of objects by
`torch.load(weights_only=True)`. `closed_unpickling` makes upstream's own loader do the
same for as long as it is entered.

What this does not stop is in docs/security.md.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo

from alia_ctx.checkpoint.dcp_files import METADATA
from alia_ctx.errors import CheckpointError

_LEGACY_COMMON_STATE = "common.pt"
_CLASSES = (
    dcp.BytesStorageMetadata,
    dcp.ChunkStorageMetadata,
    dcp.Metadata,
    dcp.MetadataIndex,
    dcp.StorageMeta,
    dcp.TensorProperties,
    dcp.TensorStorageMetadata,
    dcp._MEM_FORMAT_ENCODING,
    _StorageInfo,
    torch.Size,
)
_NO_FILES = ("", ".", "..")
_UNSUPPORTED = re.compile(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)")
_LAYOUTS = {str(v): v for v in vars(torch).values() if isinstance(v, torch.layout)}
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(cls.__module__, cls.__name__): cls for cls in _CLASSES},
    **{
        ("torch", str(value).removeprefix("torch.")): value
        for value in vars(torch).values()
        if isinstance(value, torch.dtype)
    },
    # A layout is pickled as a call of this function with the layout's name.
    ("torch.serialization", "_get_layout"): lambda name: _LAYOUTS[name],
    # Upstream's writer pickles the directory that it wrote to (StorageMeta.checkpoint_id).
    ("pathlib", "PosixPath"): Path,
    ("pathlib._local", "PosixPath"): Path,
}


class _ClosedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which no checkpoint needs"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of itself")


def load_metadata(state: Path) -> dcp.Metadata:
    """The `.metadata` of the distributed checkpoint in `state`; runs nothing that it names.

    Raises CheckpointError where it is missing, damaged, of classes that no checkpoint
    needs, or where it sends a reader to files outside of `state`.
    """
    file = state / METADATA
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: missing; the directory is no distributed checkpoint"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror or error}); see to the file "
            "system, then try again"
        ) from error
    before: dict[type, dict[str, Any]] = {c: dict(vars(c)) for c in _CLASSES}
    try:
        metadata: dcp.Metadata = _ClosedUnpickler(io.BytesIO(data)).load()
        _check(metadata)
    except Exception as error:  # whatever a damaged pickle raises
        raise CheckpointError(
            f"{file}: not readable as a checkpoint's metadata ({error}); use another one"
        ) from error
    finally:
        _restore(before)
    return metadata


def load_object(data: bytes | io.BytesIO, name: str) -> Any:
    """The object of a record: numbers, strings, tensors and containers of them.

    Raises CheckpointError, before anything runs, where it names something else.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged archive raises
        named = _UNSUPPORTED.search(str(error))
        reason = f"it names {named[1]}" if named else str(error).split("\n")[0]
        raise CheckpointError(
            f"the record {name} is no plain object ({reason}); use another checkpoint"
        ) from error


@contextmanager
def closed_unpickling(state: Path) -> Iterator[None]:
    """Let upstream load from `state`, while its readers unpickle as this module does.

    torch/distributed/checkpoint/filesystem.py reads `.metadata` with a plain
    `pickle.load`, and torch/distributed/checkpoint/default_planner.py
    records of objects with
    `torch.load(weights_only=False)`: either runs what a foreign checkpoint asks for.
    Neither can be told otherwise through Megatron's `dist_checkpointing.load`, which
    makes its own reader and planner; so both methods are replaced meanwhile.
    """
    legacy = state / _LEGACY_COMMON_STATE
    if legacy.exists():
        raise CheckpointError(
            f"{legacy}: a pickle of an older Megatron, which this program never writes "
            "or reads; export that checkpoint with what wrote it"
        )

    refusals: list[CheckpointError] = []

    def read_metadata(reader: FileSystemReader, *args: Any, **kwargs: Any) -> Any:
        with _noting(refusals):
            metadata = load_metadata(Path(reader.path))
        metadata.storage_meta = metadata.storage_meta or dcp.StorageMeta()
        metadata.storage_meta.load_id = reader.load_id
        return metadata

    def load_bytes(planner: DefaultLoadPlanner, item: Any, value: io.BytesIO) -> None:
        with _noting(refusals):
            loaded = load_object(value, item.dest_index.fqn)
        upstream_load_bytes(planner, item, _as_record(loaded))

    upstream_load_bytes = DefaultLoadPlanner.load_bytes
    try:
        with (
            patch.object(FileSystemReader, "read_metadata", read_metadata),
            patch.object(DefaultLoadPlanner, "load_bytes", load_bytes),
        ):
            yield
    except BaseException as error:
        # Upstream wraps what its readers raise in a CheckpointException, which is no
        # Exception and quotes a traceback (torch/distributed/checkpoint/api.py).
        if refusals:
            raise refusals[0] from error
        raise


@contextmanager
def _noting(refusals: list[CheckpointError]) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        refusals.append(error)
        raise


def _as_record(value: Any) -> io.BytesIO:
    """What was read safely, written again: upstream's method wants to load it itself."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream


def _check(metadata: Any) -> None:
    """Types all the way down, and no record outside of the checkpoint's own directory."""
    if not isinstance(metadata, dcp.Metadata) or not metadata.storage_data:
        raise ValueError("it describes no stored tensors")
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, dcp.TensorStorageMetadata):
            if not all(isinstance(c, dcp.ChunkStorageMetadata) for c in entry.chunks):
                raise ValueError(f"the boxes of {name} are none")
        elif not isinstance(entry, dcp.BytesStorageMetadata):
            raise ValueError(f"{name} is neither a tensor nor an object")
    for index, record in metadata.storage_data.items():
        path = getattr(record, "relative_path", None)
        if not isinstance(path, str) or path != Path(path).name or path in _NO_FILES:
            raise ValueError(f"{index} lies at {path!r}, outside of the checkpoint")


def _restore(before: dict[type, dict[str, Any]]) -> None:
    """Undo what a pickle's BUILD instruction may have set on the classes themselves."""
    for cls, attributes in before.items():
        for name in [*vars(cls)]:
            if name not in attributes:
                delattr(cls, name)
            elif vars(cls)[name] is not attributes[name]:
                setattr(cls, name, attributes[name])
