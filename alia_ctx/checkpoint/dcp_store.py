"""Megatron's distributed checkpoint (`torch_dist`) written and read as a stream, without
building a model.

Upstream's own writer takes tensors that exist and keeps one of each name until the file
is closed; a conversion has no room for that. Any layout loads any chunking
(checkpoint/dcp_files.py says how the format works), so we cut tensors along rows in
chunks of 32 MiB, of which a tensor-parallel rank that loads reads few beyond its slice,
and write each in blocks that stay in the processor's cache: a block is the whole memory
of an import, and 2 MiB ones take half the processor time of 16 MiB ones.

Nothing here imports Megatron: starting it takes seconds and hundreds of megabytes that
a conversion does not need.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from alia_ctx.checkpoint.closed_pickles import load_metadata
from alia_ctx.checkpoint.dcp_files import (
    COMMON_STATE,
    METADATA,
    Part,
    RecordFile,
    record_file,
    write_metadata,
)
from alia_ctx.checkpoint.tensor_files import (
    GlobalTensor,
    TensorFiles,
    TensorPlace,
    archive_tensors,
)
from alia_ctx.errors import CheckpointError

CHUNK_BYTES = 32 << 20
_LINEAR = re.compile(r"(decoder\.layers\.(?:self_attention|mlp)\.linear_\w+)\.weight")
Fill = Callable[[GlobalTensor, int | None, int, Tensor], None]


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of a global tensor (of one of its layers): what one record holds."""

    tensor: GlobalTensor
    layer: int | None
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.tensor.row_bytes

    @property
    def offsets(self) -> tuple[int, ...]:
        lead = () if self.layer is None else (self.layer,)
        return (*lead, self.start, *(0 for _ in self.tensor.shape[1:]))


def write_part(
    state: Path,
    tensors: Sequence[GlobalTensor],
    fill: Fill,
    *,
    part: int = 0,
    parts: int = 1,
    chunk_bytes: int = CHUNK_BYTES,
) -> Part:
    """Write the `part`-th of `parts` shares of `tensors` to a file of its own below `state`.

    `fill(tensor, layer, start, out)` must fill `out` [n, *tensor.shape[1:]] with rows
    [start, start + n). The shares are contiguous and of about equal size. Memory is one
    block, or one row where that is larger.
    """
    chunks = list(_chunks_in_order(tensors, chunk_bytes))
    with record_file(state, part) as file:
        for chunk in _contiguous_share(chunks, part, parts):
            _append_chunk(file, chunk, fill)
        if part == 0:
            for key, value in _objects(tensors):
                file.append_object(key, value)
    return file.part


def finish(state: Path, tensors: Sequence[GlobalTensor], parts: Sequence[Part]) -> None:
    """Write the metadata that turns the files of all parts into a checkpoint that
    Megatron loads.
    """
    write_metadata(
        state,
        {tensor.name: (tensor.global_shape, tensor.dtype) for tensor in tensors},
        parts,
    )


def _append_chunk(file: RecordFile, chunk: Chunk, fill: Fill) -> None:
    tensor = chunk.tensor
    shape = (chunk.stop - chunk.start, *tensor.shape[1:])

    def rows(start: int, out: Tensor) -> None:
        fill(tensor, chunk.layer, chunk.start + start, out)

    file.append_streamed(tensor.name, chunk.offsets, shape, tensor.dtype, rows)


def open_state(state: Path) -> StateReader:
    """A reader of the checkpoint in `state`; CheckpointError where it is none."""
    return StateReader(state)


class StateReader:
    """Boxes of the global tensors of a checkpoint's `state/`, from whatever layout
    wrote it. Use with `with`.
    """

    def __init__(self, state: Path) -> None:
        self._state = Path(state)
        metadata = load_metadata(self._state)
        self._storage: Mapping[Any, Any] = metadata.storage_data
        self._described = {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._places: dict[MetadataIndex, TensorPlace] = {}
        self._sorted: dict[str, tuple[list[int], list[ChunkStorageMetadata], int]] = {}
        self._files = TensorFiles()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.__exit__()

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Global shape and dtype by name; layers are stacked along the first axis."""
        return {
            name: (tuple(entry.size), entry.properties.dtype)
            for name, entry in self._described.items()
        }

    def read_rows(self, name: str, layer: int | None, start: int, out: Tensor) -> None:
        """Fill contiguous `out` [n, ...] with rows [start, start + n) of tensor `name`
        (of one layer).
        """
        rest = (0 for _ in out.shape[1:])
        if layer is None:
            self.read_box(name, (start, *rest), out)
        else:
            self.read_box(name, (layer, start, *rest), out[None])

    def read_box(self, name: str, offsets: tuple[int, ...], out: Tensor) -> None:
        """Fill `out`, on the CPU and of the stored dtype, with the box of tensor `name`
        that starts at `offsets`.

        Raises CheckpointError where values are missing, damaged, or of another dtype.
        """
        described = self._described.get(name)
        if described is None or described.properties.dtype != out.dtype:
            raise CheckpointError(
                f"{self._state}: holds no {name} of {out.dtype} "
                f"({'nothing of that name' if described is None else described.properties.dtype})"
            )
        covered = 0
        for chunk in self._near(name, offsets[0], offsets[0] + out.shape[0]):
            low = tuple(map(max, chunk.offsets, offsets))
            ends = zip(chunk.offsets, chunk.sizes, offsets, out.shape, strict=True)
            high = tuple(min(a + n, b + m) for a, n, b, m in ends)
            if all(first < last for first, last in zip(low, high, strict=True)):
                target = out[_box(low, high, offsets)]
                self._copy(name, chunk, _box(low, high, chunk.offsets), target)
                covered += target.numel()
        if covered != out.numel():
            raise CheckpointError(
                f"{self._state}: {name} has only {covered} of the {out.numel()} values "
                f"of {list(out.shape)} "
                f"at {list(offsets)}; the checkpoint is incomplete"
            )

    def _near(self, name: str, start: int, stop: int) -> Iterator[ChunkStorageMetadata]:
        """Chunks of which the first axis meets [start, stop)."""
        if name not in self._sorted:
            chunks = sorted(
                self._described[name].chunks, key=lambda chunk: chunk.offsets[0]
            )
            longest = max((chunk.sizes[0] for chunk in chunks), default=0)
            self._sorted[name] = [chunk.offsets[0] for chunk in chunks], chunks, longest
        starts, chunks, longest = self._sorted[name]
        for index in range(
            bisect.bisect_left(starts, start - longest + 1),
            bisect.bisect_left(starts, stop),
        ):
            if chunks[index].offsets[0] + chunks[index].sizes[0] > start:
                yield chunks[index]

    def _copy(
        self,
        name: str,
        chunk: ChunkStorageMetadata,
        box: tuple[slice, ...],
        target: Tensor,
    ) -> None:
        """Copy a box of one chunk:

        straight where it is rows of it, else by way of the whole rows that hold it.
        """
        place = self._place(name, chunk)
        axis = next(
            (axis for axis, size in enumerate(place.shape) if size > 1),
            len(place.shape) - 1,
        )
        first, last = box[axis].start, box[axis].stop
        rows = TensorPlace(place.file, place.offset, place.shape[axis:], place.dtype)
        if target.is_contiguous() and target.numel() == (last - first) * math.prod(
            rows.shape[1:]
        ):
            self._files.read_rows(
                rows, first, target.view(last - first, *rows.shape[1:])
            )
            return
        whole = torch.empty((last - first, *rows.shape[1:]), dtype=target.dtype)
        self._files.read_rows(rows, first, whole)
        target.copy_(whole[(slice(None), *box[axis + 1 :])].view(target.shape))

    def _place(self, name: str, chunk: ChunkStorageMetadata) -> TensorPlace:
        """Where the chunk's values lie."""
        index = MetadataIndex(name, chunk.offsets)
        if index not in self._places:
            record = self._storage.get(index)
            if record is None or getattr(record, "transform_descriptors", None):
                raise CheckpointError(
                    f"{self._state / METADATA}: {name} at {list(chunk.offsets)} has no plain "
                    "record; the checkpoint is incomplete or compressed"
                )
            place = archive_tensors(
                self._state / record.relative_path, record.offset, record.length
            )
            self._check(name, chunk, place)
            self._places[index] = place
        return self._places[index]

    def _check(self, name: str, chunk: ChunkStorageMetadata, place: Any) -> None:
        dtype = self._described[name].properties.dtype
        if (
            not isinstance(place, TensorPlace)
            or place.shape != tuple(chunk.sizes)
            or place.dtype != dtype
        ):
            raise CheckpointError(
                f"{self._state}: the record of {name} at {list(chunk.offsets)} holds {place}, "
                f"expected {list(chunk.sizes)} of {dtype}; the checkpoint is damaged"
            )


def _box(
    low: tuple[int, ...], high: tuple[int, ...], origin: Sequence[int]
) -> tuple[slice, ...]:
    """[low, high) as it lies in an array that begins at `origin`."""
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))


def _chunks_in_order(
    tensors: Sequence[GlobalTensor], chunk_bytes: int
) -> Iterator[Chunk]:
    """All chunks, layer by layer, so that shards of a model are read in their order."""
    stacked = [tensor for tensor in tensors if tensor.layers is not None]
    first = tensors.index(stacked[0]) if stacked else len(tensors)
    layers = range(max((tensor.layers or 0 for tensor in stacked), default=0))
    order: list[tuple[GlobalTensor, int | None]] = [
        *((tensor, None) for tensor in tensors[:first]),
        *((tensor, layer) for layer in layers for tensor in stacked),
        *((tensor, None) for tensor in tensors[first:] if tensor.layers is None),
    ]
    for tensor, layer in order:
        step = max(1, chunk_bytes // tensor.row_bytes)
        for start in range(0, tensor.shape[0], step):
            yield Chunk(tensor, layer, start, min(start + step, tensor.shape[0]))


def _contiguous_share(chunks: Sequence[Chunk], part: int, parts: int) -> list[Chunk]:
    """The `part`-th of `parts` shares of about equal bytes; every chunk is in exactly one,
    that in which it begins.
    """
    ends = list(itertools.accumulate(chunk.nbytes for chunk in chunks))
    return [
        chunk
        for chunk, end in zip(chunks, ends, strict=True)
        if (end - chunk.nbytes) * parts // ends[-1] == part
    ]


def _objects(tensors: Sequence[GlobalTensor]) -> Iterator[tuple[str, Any]]:
    """What Megatron expects beside weights:

    its empty common state, and each linear layer's unused extra state.
    """
    yield COMMON_STATE, {}
    for tensor in tensors:
        if match := _LINEAR.fullmatch(tensor.name):
            for layer in range(tensor.layers or 0):
                yield f"{match[1]}._extra_state/shard_{layer}_{tensor.layers}", None
