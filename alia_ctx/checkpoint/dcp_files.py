"""Files of PyTorch's distributed checkpoint (DCP), written record by record with their checksums.

The format: `.distcp` files of `torch.save` records, each one box of a global tensor (or
one object), and a pickled `.metadata` that says which record is where
(torch/distributed/checkpoint/filesystem.py and metadata.py;
megatron/core/dist_checkpointing/strategies/torch.py). The boxes of a tensor may have
any shapes as long as they cover it once, so every writer writes what it happens to
have.

Nothing here imports Megatron, and nothing communicates.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from alia_ctx.checkpoint.content import CONTENT, box_sum, content_entry
from alia_ctx.checkpoint.tensor_files import BlockPipe
from alia_ctx.errors import CheckpointError

METADATA = ".metadata"
COMMON_STATE = (
    "common_state/shard_0_1"  # where Megatron keeps everything that is no tensor
)
_BLOCK_BYTES = 2 << 20
_BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


@dataclass(frozen=True)
class Record:
    """Where a box of global tensor `key` lies:

    bytes [start, start + length) of `file`. Objects have no box.
    """

    key: str
    offsets: tuple[int, ...] | None
    sizes: tuple[int, ...] | None
    file: str
    start: int
    length: int


@dataclass
class Part:
    """What one writer wrote:

    its records, and size, checksum and content of its file as a manifest lists them.
    """

    records: list[Record] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextmanager
def record_file(state: Path, number: int) -> Iterator[RecordFile]:
    """The `number`-th record file below `state`;

    flushed to disk and entered into its `part` on leaving.
    """
    name = f"__{number}_0.distcp"
    with (state / name).open("wb", buffering=1 << 16) as stream, _without_crc():
        with RecordFile(name, stream) as file:
            yield file
        stream.flush()
        os.fsync(stream.fileno())
    file.part.files[name] = {
        "bytes": file.position,
        "xxh3_128": file.digest.hexdigest(),
        CONTENT: content_entry(file.content),
    }


def write_metadata(
    state: Path,
    tensors: Mapping[str, tuple[Sequence[int], torch.dtype]],
    parts: Sequence[Part],
) -> None:
    """Write what turns the files of `parts` into a checkpoint of `tensors`: name -> global
    shape and dtype.

    Raises CheckpointError where the records of a tensor do not hold as many values as it has.
    """
    records = [record for part in parts for record in part.records]
    described: dict[str, Any] = {
        name: TensorStorageMetadata(
            TensorProperties(dtype=dtype), torch.Size(shape), []
        )
        for name, (shape, dtype) in tensors.items()
    }
    for record in records:
        if record.offsets is None or record.sizes is None:
            described[record.key] = BytesStorageMetadata()
        else:
            box = ChunkStorageMetadata(
                torch.Size(record.offsets), torch.Size(record.sizes)
            )
            described[record.key].chunks.append(box)
    _check_complete(state, described)
    metadata = Metadata(
        state_dict_metadata=described,
        planner_data={},
        storage_data={
            MetadataIndex(r.key, None if r.offsets is None else torch.Size(r.offsets)):
                _StorageInfo(r.file, r.start, r.length) for r in records
        },
        storage_meta=StorageMeta(),
        version=CURRENT_DCP_VERSION,
    )  # fmt: skip
    (state / METADATA).write_bytes(pickle.dumps(metadata))
    (state / "metadata.json").write_text(json.dumps(_BACKEND), encoding="utf-8")


def _check_complete(state: Path, described: Mapping[str, Any]) -> None:
    for name, entry in described.items():
        if isinstance(entry, TensorStorageMetadata):
            written = sum(math.prod(box.sizes) for box in entry.chunks)
            if written != math.prod(entry.size):
                raise CheckpointError(
                    f"{state}: {written} of the {math.prod(entry.size)} values of "
                    f"{name} were written; "
                    "the checkpoint is not complete, and this is a fault of the "
                    "program: please report it"
                )


class RecordFile:
    """A file of `torch.save` records that knows its position, its checksum and the content
    of its tensors as it grows: nothing is read again.
    """

    def __init__(self, name: str, stream: Any) -> None:
        self.name, self.position, self.digest, self.part = (
            name,
            0,
            xxhash.xxh3_128(),
            Part(),
        )
        self.content = 0
        self._stream = stream
        self._pipe = BlockPipe(self._put, _BLOCK_BYTES)
        self._streamed: tuple[int, Callable[[], None]] | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipe.__exit__(*exception)

    def append_object(self, key: str, value: Any) -> None:
        """Append an object as Megatron's loader expects it: in a list of one."""
        self._append(key, None, None, [value])

    def append_tensor(self, key: str, offsets: tuple[int, ...], values: Tensor) -> None:
        """Append the box of global tensor `key` that starts at `offsets`;

        `values` must be all of its storage.
        """
        self.content += box_sum(key, offsets, values)
        self._append(key, offsets, tuple(values.shape), values)

    def append_streamed(
        self,
        key: str,
        offsets: tuple[int, ...],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        fill: Callable[[int, Tensor], None],
    ) -> None:
        """Append a box of `shape` that is never whole in memory; `offsets` may have axes
        of size 1 before its own.

        `fill(start, out)` must fill `out` [n, *shape[1:]] with the box's rows [start,
        start + n). torch.save hands a storage over in one `write` and, without CRC,
        never looks at it. So it gets a tensor of the right shape in memory that is
        never touched, and `write` puts blocks in its place.
        """
        sizes = (*(1 for _ in range(len(offsets) - len(shape))), *shape)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes <= _BLOCK_BYTES:
            values = self._pipe.empty(shape, dtype)
            fill(0, values)
            self.content += box_sum(key, offsets, values.view(sizes))
            self._append(key, offsets, sizes, values.view(sizes))
            return
        placeholder = (
            torch.from_numpy(np.empty(nbytes, np.uint8)).view(dtype).view(sizes)
        )

        def add(start: int, rows: Tensor) -> None:
            place = (*offsets[:axis], offsets[axis] + start, *offsets[axis + 1 :])
            self.content += box_sum(key, place, rows.view(*sizes[:axis], *rows.shape))

        axis = len(offsets) - len(shape)
        self._streamed = nbytes, lambda: self._write_blocks(shape, dtype, fill, add)
        self._append(key, offsets, sizes, placeholder)

    def write(self, data: Any) -> int:
        """What torch.save calls;

        errors wait until it returns, as they must not pass through its C++ frames.
        """
        if self._error is None:
            try:
                if self._streamed is not None and len(data) == self._streamed[0]:
                    self._streamed[1]()
                    self._streamed = None
                else:
                    self._pipe.drain()
                    self._put(data)
            except BaseException as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """torch.save calls it after each record; the file is flushed once, when it is closed."""

    def _append(
        self,
        key: str,
        offsets: tuple[int, ...] | None,
        sizes: tuple[int, ...] | None,
        value: Any,
    ) -> None:
        start = self.position
        torch.save(value, self)  # type: ignore[arg-type]  # it needs write and flush only
        if self._error is not None:
            raise self._error
        self.part.records.append(
            Record(key, offsets, sizes, self.name, start, self.position - start)
        )

    def _write_blocks(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        fill: Callable[[int, Tensor], None],
        add: Callable[[int, Tensor], None],
    ) -> None:
        for start, count in self._pipe.blocks(
            0, shape[0], math.prod(shape[1:]) * dtype.itemsize
        ):
            rows = self._pipe.empty((count, *shape[1:]), dtype)
            fill(start, rows)
            add(start, rows)
            self._pipe.put(rows)

    def _put(self, data: Any) -> None:
        self.digest.update(data)
        self.position += len(data)
        self._stream.write(data)


@contextmanager
def _without_crc() -> Iterator[None]:
    """torch.save without CRC32, which takes longer than the copy;

    torch never checks it, our manifest has xxh3.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
