"""Safetensors shards written as a stream: the header follows from the shapes, the rows
come one block at a time.

The safetensors library can only save tensors that are in memory; its format (8 bytes of
header length, a JSON header, the tensors without gaps) needs no such thing. Its reader
is what the tests read our files with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from alia_ctx.checkpoint.tensor_files import BlockPipe
from alia_ctx.hf.rules import RowMap, WeightMap
from alia_ctx.hf.weight_files import DTYPE_NAMES, SAFETENSORS, SAFETENSORS_INDEX

_BLOCK_BYTES = 2 << 20  # stays in the processor's cache
_NAMES = {dtype: name for name, dtype in DTYPE_NAMES.items()}
ReadRows = Callable[[str, RowMap, int, Tensor], None]


@dataclass(frozen=True)
class Shard:
    """One file and its tensors: name, shape, dtype, and where the rows come from."""

    name: str
    tensors: tuple[tuple[str, tuple[int, ...], torch.dtype, RowMap], ...]

    @property
    def nbytes(self) -> int:
        return sum(
            math.prod(shape) * dtype.itemsize for _, shape, dtype, _ in self.tensors
        )


def plan(
    weights: WeightMap, dtype_of: Callable[[RowMap], torch.dtype], shard_bytes: int
) -> list[Shard]:
    """Cut the model's tensors, in the order of its layers, in files of at most
    `shard_bytes` (or one tensor).
    """
    groups: list[list[tuple[str, tuple[int, ...], torch.dtype, RowMap]]] = [[]]
    filled = 0
    for name, shape, home in weights.huggingface_tensors():
        dtype = dtype_of(home)
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, shape, dtype, home))
        filled += size
    count = len(groups)
    names = (
        [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        if count > 1
        else [SAFETENSORS]
    )
    # Wider dtypes first keeps every tensor aligned to its own width.
    return [
        Shard(name, tuple(sorted(group, key=lambda t: -t[2].itemsize)))
        for name, group in zip(names, groups, strict=True)
    ]


def write(shard: Shard, directory: Path, read_rows: ReadRows) -> dict[str, Any]:
    """Write one shard; `read_rows(name, row_map, start, out)` must fill `out` with rows
    of tensor `name`. Returns its size and checksum, formed beside the writing.
    """
    digest = xxhash.xxh3_128()
    with (directory / shard.name).open("wb", buffering=0) as stream:

        def put(data: Any) -> None:
            digest.update(data)
            _write_whole(stream, data)

        put(np.frombuffer(_header(shard), np.uint8))
        with BlockPipe(put, _BLOCK_BYTES) as pipe:
            for name, shape, dtype, home in shard.tensors:
                for start, count in pipe.blocks(
                    0, shape[0], math.prod(shape[1:]) * dtype.itemsize
                ):
                    block = pipe.empty((count, *shape[1:]), dtype)
                    read_rows(name, home, start, block)
                    pipe.put(block)
        size = stream.tell()
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def write_all(
    shards: Iterable[Shard], directory: Path, read_rows: ReadRows
) -> dict[str, dict[str, Any]]:
    """Write several shards, one after the other; the entry of each by its name."""
    return {shard.name: write(shard, directory, read_rows) for shard in shards}


def write_index(plan: Sequence[Shard], directory: Path) -> None:
    """Write the index that says which shard holds which tensor; a single file has none."""
    if len(plan) == 1:
        return
    weight_map = {name: shard.name for shard in plan for name, *_ in shard.tensors}
    document = {
        "metadata": {"total_size": sum(shard.nbytes for shard in plan)},
        "weight_map": weight_map,
    }
    (directory / SAFETENSORS_INDEX).write_text(
        json.dumps(document, indent=2) + "\n", encoding="utf-8"
    )


def _header(shard: Shard) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape, dtype, _ in shard.tensors:
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_whole(stream: object, data: np.ndarray) -> None:
    view = memoryview(data)
    while view:  # a raw file may write less than asked
        view = view[stream.write(view) :]  # type: ignore[attr-defined]
