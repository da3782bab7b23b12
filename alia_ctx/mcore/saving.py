"""Save a sharded state while training goes on: copy, then write, checksum and flush in a thread, then agree.

Megatron's distributed checkpoint splits a save into a local write without communication and collective
finalisation. We run the local write in a thread of this process, on copies, and finalise in the main thread
once every rank is done, so no collective ever runs beside the training's own.

Cost while training goes on: host memory for a copy of what this rank writes, and the time of that copy.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.api import CheckpointException

from alia_ctx.checkpoint import STATE, file_entry
from alia_ctx.errors import CheckpointError

# Held on disk until the data is written, so that the metadata (written last, by rank 0 alone, where upstream's
# collective has no way to report an error) does not meet a full disk.
_BALLAST_BYTES = 8 << 20


class _LastPut(queue.Queue[Any]):
    """A queue that remembers what was put last: upstream's writer reports success or error through it."""

    last: Any = None

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.last = item
        super().put(item, block, timeout)


class BackgroundSave:
    """A save under way into `directory` (a checkpoint that was begun). Construction and `finish` are collective.

    `live` are the tensors that the next update will change.
    """

    def __init__(self, state: dict[str, Any], directory: Path, live: Iterable[torch.Tensor]) -> None:
        self.directory = directory
        self.error: str | None = None
        self._files: dict[str, dict[str, Any]] = {}
        self._ballast = directory / ".ballast"
        self._results: Any = _LastPut()
        # Upstream would start a manager process for this queue; writer and reader are threads of one process.
        filesystem_async._results_queue = self._results
        if dist.get_rank() == 0:
            self._guard(lambda: self._ballast.write_bytes(b"\0" * _BALLAST_BYTES))
        self._request = dist_checkpointing.save(
            state, str(directory / STATE), async_sharded_save=True, async_strategy="mcore"
        )
        self._buckets = self._request.preload_fn() if self._request.preload_fn else []
        if not torch.cuda.is_available():
            storages = {tensor.untyped_storage().data_ptr() for tensor in live}
            self._buckets = [_copied(bucket, storages) for bucket in self._buckets]
        self._thread = threading.Thread(target=self._guard, args=(self._write,), name="checkpoint writer")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether this rank has written its part (or failed to)."""
        return not self._thread.is_alive()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Wait for all ranks, write the metadata, and return size and checksum of every file, on every rank.

        Raises CheckpointError, on all ranks alike, where any rank could not write its part.
        """
        self._thread.join()
        self._agree()
        if dist.get_rank() == 0:
            self._ballast.unlink(missing_ok=True)
        try:
            for finalize in self._request.finalize_fns:
                finalize()
        except (Exception, CheckpointException) as error:
            self.error = self.error or f"{type(error).__name__}: {error}"
        if dist.get_rank() == 0:
            self._guard(self._add_rest)
        self._agree()
        return self._gathered()

    def _write(self) -> None:
        if self._request.async_fn is None:
            return
        rank, _, results = self._request.async_fn_args
        self._request.async_fn(rank, self._buckets, results, **self._request.async_fn_kwargs)
        if isinstance(self._results.last, Exception):
            raise self._results.last
        for path, _, _ in self._buckets:
            self._files[str(Path(path).relative_to(self.directory))] = file_entry(Path(path))
        self._buckets = []

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # reported to all ranks by _agree
            self.error = self.error or f"{type(error).__name__}: {error}"

    def _agree(self) -> None:
        """Raise on every rank what any rank met."""
        errors: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, self.error)
        found = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error]
        if found:
            with contextlib.suppress(OSError):
                self._ballast.unlink(missing_ok=True)
            raise CheckpointError(f"{self.directory}: could not be written ({'; '.join(found)}); check space and quota")

    def _add_rest(self) -> None:
        """Small files that only rank 0 writes: metadata."""
        for path in self.directory.rglob("*"):
            name = str(path.relative_to(self.directory))
            if path.is_file() and not path.name.endswith(".distcp"):
                self._files[name] = file_entry(path)

    def _gathered(self) -> dict[str, dict[str, Any]]:
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self._files)
        return {name: entry for part in parts for name, entry in part.items()}


def _copied(bucket: Any, live: set[int]) -> Any:
    """On a host, staging to the CPU copies nothing: the next update would change what is being written.

    What was gathered for this save (optimizer state) is nobody else's and needs no second copy.
    """
    path, key, (bytes_data, tensor_data) = bucket
    copies = [(item, t.clone() if t.untyped_storage().data_ptr() in live else t) for item, t in tensor_data]
    return path, key, (bytes_data, copies)
