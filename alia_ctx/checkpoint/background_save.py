"""Write what a rank owns while training goes on:

copy it to the host, write it in a thread, agree.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alia_ctx.checkpoint import STATE, file_entry
from alia_ctx.checkpoint.boxes import boxes
from alia_ctx.checkpoint.dcp_files import Part, record_file, write_metadata
from alia_ctx.errors import CheckpointError

_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorBox:
    """A box of global tensor `key` at `offsets`, of `sizes`:

    `values` [n], flat, that the next update may change.
    """

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class OwnedState:
    """What one rank writes, and what it knows of the global tensors: name -> (shape, dtype)."""

    boxes: list[TensorBox]
    objects: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]

    def add(
        self,
        key: str,
        offsets: tuple[int, ...],
        shape: tuple[int, ...],
        start: int,
        values: Tensor,
    ) -> None:
        """Add flat `values`, those from `start` on of a shard of `shape` that lies at
        `offsets` in tensor `key`, as the boxes that they are.
        """
        done = 0
        for within, sizes in boxes(shape, start, start + values.numel()):
            place = tuple(a + b for a, b in zip(offsets, within, strict=True))
            part = values[done : done + math.prod(sizes)]
            self.boxes.append(TensorBox(key, place, sizes, part))
            done += part.numel()


class Staging:
    """Host memory that pieces are copied to: pinned beside a GPU, and kept from save to save."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def copy(self, pieces: list[TensorBox]) -> list[TensorBox]:
        """The same pieces in host memory that nothing else changes until the next call;
        each its own storage.

        What lies in one place is copied once: in fp32, weights are the optimizer's own
        copy of them.
        """
        starts: dict[tuple[int, int], int] = {}
        size = 0
        for piece in pieces:
            if starts.setdefault(_place(piece), size) == size:
                size += -(-piece.values.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._memory.numel() < size:
            self._memory = torch.empty(
                size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()
            )
        sources = {_place(piece): piece.values for piece in pieces}
        copies = {
            place: self._stretch(starts[place], values)
            for place, values in sources.items()
        }
        for place, values in sources.items():
            copies[place].copy_(values, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [
            TensorBox(p.key, p.offsets, p.sizes, copies[_place(p)].view(p.sizes))
            for p in pieces
        ]

    def _stretch(self, start: int, values: Tensor) -> Tensor:
        """Memory for `values`, by way of NumPy:

        a storage of its own, as torch.save writes whole storages.
        """
        return torch.from_numpy(
            self._memory.numpy()[start : start + values.nbytes]
        ).view(values.dtype)


def _place(piece: TensorBox) -> tuple[int, int]:
    return piece.values.data_ptr(), piece.values.nbytes


class BackgroundSave:
    """A save of `state` under way into `directory` (a checkpoint that was begun).

    `finish` is collective.
    """

    def __init__(self, state: OwnedState, directory: Path, staging: Staging) -> None:
        self.directory = directory
        self.error: str | None = None
        self.ended_at = 0.0  # by time.perf_counter, when this rank's part was written
        self._tensors, self._objects = state.tensors, state.objects
        self._part = Part()
        self._pieces: list[TensorBox] = []
        self._guard(lambda: self._pieces.extend(staging.copy(state.boxes)))
        self._thread = threading.Thread(target=self._run, name="checkpoint writer")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether this rank has written its part (or failed to)."""
        return not self._thread.is_alive()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Wait for all ranks, write the metadata, and return size and checksum of every
        file, on every rank.

        Raises CheckpointError, on all ranks alike, where any rank could not write its part.
        """
        self._thread.join()
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (self.error, self._part, self._tensors))
        self._raise_any([error for error, _, _ in parts])
        files = {
            f"{STATE}/{name}": entry
            for _, part, _ in parts
            for name, entry in part.files.items()
        }
        if dist.get_rank() == 0:
            tensors = {
                name: about for _, _, known in parts for name, about in known.items()
            }
            self._guard(
                lambda: self._write_metadata(
                    tensors, [part for _, part, _ in parts], files
                )
            )
        outcome: list[Any] = [(self.error, files)]
        dist.broadcast_object_list(outcome, src=0)
        error, files = outcome[0]
        self._raise_any([error])
        return dict(files)

    def _run(self) -> None:
        self._guard(self._write)
        self.ended_at = time.perf_counter()

    def _write(self) -> None:
        if self.error is not None:
            return
        state = self.directory / STATE
        state.mkdir(exist_ok=True)
        if not self._pieces and not self._objects:
            return
        with record_file(state, dist.get_rank()) as file:
            for key, value in self._objects.items():
                file.append_object(key, value)
            for piece in self._pieces:
                file.append_tensor(piece.key, piece.offsets, piece.values)
        self._part, self._pieces = file.part, []

    def _write_metadata(
        self, tensors: Any, parts: list[Part], files: dict[str, dict[str, Any]]
    ) -> None:
        state = self.directory / STATE
        write_metadata(state, tensors, parts)
        for path in state.iterdir():
            name = f"{STATE}/{path.name}"
            if name not in files:
                files[name] = file_entry(path)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # reported to all ranks by finish
            self.error = self.error or f"{type(error).__name__}: {error}"

    def _raise_any(self, errors: list[str | None]) -> None:
        failed = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error]
        if failed:
            raise CheckpointError(
                f"{self.directory}: could not be written ({'; '.join(failed)}); check "
                "space and quota"
            )
