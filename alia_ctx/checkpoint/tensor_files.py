"""Contiguous tensors inside files: where they lie, and reading some of their rows without
loading the rest.

Both sides of a conversion are this: a safetensors shard, a `torch.save` archive, or
such an archive at an offset within a larger file (Megatron's `.distcp`). Reads go
through a caller's buffer, not a memory map, so that the
resident memory of a conversion is its buffers: mapped pages of a 100 GB shard count as
resident too.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alia_ctx.errors import CheckpointError

# What a value is whose exponent bits are all ones: infinite or NaN.
_EXPONENT: dict[torch.dtype, Any] = {
    torch.bfloat16: np.uint16(0x7F80),
    torch.float16: np.uint16(0x7C00),
    torch.float32: np.uint32(0x7F800000),
}
FLOATS = tuple(_EXPONENT)
_SCAN_BYTES = 512 << 10


@dataclass(frozen=True)
class GlobalTensor:
    """One tensor of a whole model, however it is cut over files.

    With `layers`, it stacks that many layers' tensors along a leading axis, which
    `shape` does not include.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layers: int | None = None

    @property
    def global_shape(self) -> tuple[int, ...]:
        return self.shape if self.layers is None else (self.layers, *self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis of `shape`."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorPlace:
    """A C-contiguous tensor of `shape` that starts at byte `offset` of `file`."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """Open files to read rows from; a context manager that closes them."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read_rows(self, place: TensorPlace, start: int, out: Tensor) -> None:
        """Fill contiguous `out` [n, ...] of the place's dtype with its rows [start, start + n).

        Raises CheckpointError where the file ends before them or cannot be read.
        """
        target, position = (
            memoryview(as_bytes(out)),
            place.offset + start * place.row_bytes,
        )
        descriptor = self._open(place.file)
        while target:
            count = os.preadv(descriptor, [target], position)
            if count == 0:
                raise CheckpointError(
                    f"{place.file}: ends at byte {position}, a tensor goes on for {len(target)} "
                    "more; the file is truncated, copy it again"
                )
            target, position = target[count:], position + count

    def _open(self, file: Path) -> int:
        if file not in self._descriptors:
            try:
                self._descriptors[file] = os.open(file, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(
                    f"{file}: cannot be opened ({error.strerror})"
                ) from error
            os.posix_fadvise(self._descriptors[file], 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._descriptors[file]


class BlockPipe:
    """Blocks of rows on their way to a file: `sink(bytes)` writes one in a thread while
    the caller fills the next.

    Two buffers of `block_bytes` (or one row, where that is larger) are all the memory.
    Use with `with`; leaving it waits for the last block. An error of `sink` is raised
    by the next `put` or `drain`.
    """

    def __init__(self, sink: Callable[[Any], None], block_bytes: int) -> None:
        self._sink, self._block_bytes = sink, block_bytes
        self._buffers = [np.empty(block_bytes, np.uint8) for _ in range(2)]
        self._pool = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def __enter__(self) -> BlockPipe:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self._pool.shutdown()

    def blocks(
        self, start: int, stop: int, row_bytes: int
    ) -> Iterator[tuple[int, int]]:
        """First row and number of rows of blocks that cover rows [start, stop)."""
        step = max(1, self._block_bytes // max(1, row_bytes))
        for first in range(start, stop, step):
            yield first, min(step, stop - first)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The free buffer as an uninitialised tensor;

        its storage ends with it, as torch.save writes whole storages.
        """
        size = math.prod(shape) * dtype.itemsize
        if size > self._buffers[0].nbytes:
            self._buffers[0] = np.empty(size, np.uint8)
        return torch.from_numpy(self._buffers[0][:size]).view(dtype).view(shape)

    def put(self, block: Tensor) -> None:
        """Send on what `empty` gave, once the block before it is written;

        the buffers change places.
        """
        self.drain()
        self._written = self._pool.submit(self._sink, as_bytes(block))
        self._buffers.reverse()

    def drain(self) -> None:
        """Wait until everything that was put is written."""
        if self._written is not None:
            written, self._written = self._written, None
            written.result()


def as_bytes(tensor: Tensor) -> Any:
    """The bytes of a contiguous CPU tensor as a NumPy uint8 array [nbytes] that shares
    its memory.
    """
    return tensor.reshape(-1).view(torch.uint8).numpy()


def is_finite(tensor: Tensor) -> bool:
    """Whether no value of contiguous `tensor`, of a dtype in FLOATS, is NaN or infinite.

    Looks at exponent bits in pieces that stay in the processor's cache: 10 GB/s a core, ten times
    `torch.isfinite`, and no thread pool that would spin beside the copying.
    """
    ones = _EXPONENT[tensor.dtype]
    bits = as_bytes(tensor).view(ones.dtype)
    scratch = np.empty(_SCAN_BYTES // ones.itemsize, ones.dtype)
    for start in range(0, bits.size, scratch.size):
        piece = bits[start : start + scratch.size]
        if np.bitwise_and(piece, ones, out=scratch[: piece.size]).max() == ones:
            return False
    return True


def archive_tensors(file: Path, offset: int = 0, length: int | None = None) -> Any:
    """What `torch.save` wrote at [offset, offset + length) of `file`, with each tensor as
    its TensorPlace.

    The result is a TensorPlace, or a dict of them by name. No weight is read:
    `torch.load` to the meta device makes tensors without storage and notes where each
    storage lies (PyTorch's serialization notes, `_checkpoint_offset`). Raises
    CheckpointError where it is no zip archive of contiguous tensors.
    """
    try:
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = os.fstat(stream.fileno()).st_size
            view = _Window(stream, offset, size - offset if length is None else length)
            loaded = torch.load(
                io.BufferedReader(view, 1 << 16), map_location="meta", weights_only=True
            )
    # torch raises RuntimeError, UnpicklingError, ValueError, OSError by what is broken
    except Exception as error:
        where = f" at byte {offset}" if offset else ""
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{file}{where}: not a readable torch archive ({reason}); copy it again, "
            "or save it as safetensors"
        ) from error
    if isinstance(loaded, Tensor):
        return _place(file, offset, "tensor", loaded)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{file}: holds {type(loaded).__name__} instead of a dict of tensors"
        )
    return {name: _place(file, offset, name, value) for name, value in loaded.items()}


def _place(file: Path, base: int, name: str, tensor: Any) -> TensorPlace:
    if not isinstance(tensor, Tensor) or not tensor.is_contiguous():
        what = (
            "a non-contiguous tensor"
            if isinstance(tensor, Tensor)
            else type(tensor).__name__
        )
        raise CheckpointError(
            f"{file}: {name} is {what}, expected a contiguous tensor; save it as safetensors"
        )
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None:
        raise CheckpointError(
            f"{file}: {name} is in the format of torch before 1.6; load and save it again"
        )
    offset = base + start + tensor.storage_offset() * tensor.dtype.itemsize
    return TensorPlace(file, offset, tuple(tensor.shape), tensor.dtype)


class _Window(io.RawIOBase):
    """A read-only view of part of a file, as a file of its own."""

    def __init__(self, stream: Any, start: int, length: int) -> None:
        self._stream, self._start, self._length, self._position = (
            stream,
            start,
            length,
            0,
        )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[
            whence
        ]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._position))
        data = os.pread(self._stream.fileno(), count, self._start + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
