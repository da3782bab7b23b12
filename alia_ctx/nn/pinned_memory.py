"""Host memory that a GPU copies to and from while it computes: page-locked, in buffers of
one size.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from alia_ctx.errors import LayoutError

_PORTABLE = 1  # cudaHostRegisterPortable


class PinnedBuffers:
    """Buffers of `nbytes` bytes in host memory, which are taken and given back.

    Locking takes its time and stops the GPU, so a buffer is allocated once and kept. It
    is not torch's `pin_memory`, whose allocator rounds up to a power of two
    (at::CachingHostAllocatorImpl): 4 GiB for 2.5.

    Args:
        nbytes: of each buffer.
        pinned: whether to page-lock them; needs CUDA.

    Attributes:
        count: buffers allocated so far; none is freed before the pool is.
        out: buffers that are taken now.
        most: the most that were taken at a time.
    """

    def __init__(self, nbytes: int, *, pinned: bool) -> None:
        self.nbytes, self.pinned = nbytes, pinned
        self.out = self.most = 0
        self._free: list[Tensor] = []
        # All that were allocated, in whosever hands: memory must not go back to the system
        # while it is locked, or the next mapping at its address could not be.
        self._all: list[Tensor] = []
        end = weakref.finalize(self, _unlock, self._all, self._free, pinned)
        end.atexit = False  # CUDA may be gone before

    @property
    def count(self) -> int:
        return len(self._all)

    def allocate(
        self, count: int, progress: Callable[[int], object] = lambda _: None
    ) -> None:
        """Have at least `count` buffers; `progress` is told how many there are. LayoutError
        where the host has no memory for them.
        """
        while self.count < count:
            self._free.append(self._allocated())
            progress(self.count)

    def take(self) -> Tensor:
        """A buffer, uint8 [nbytes], with anything in it. LayoutError where the host has no
        memory for one more.
        """
        buffer = self._free.pop() if self._free else self._allocated()
        self.out += 1
        self.most = max(self.most, self.out)
        return buffer

    def give(self, buffer: Tensor) -> None:
        """Back what `take` gave. Who takes it next must write only after its last reader."""
        self.out -= 1
        self._free.append(buffer)

    def _allocated(self) -> Tensor:
        try:
            buffer = _mapped(self.nbytes)
            if self.pinned:
                _lock(buffer)
        except (OSError, OverflowError, RuntimeError) as error:
            raise LayoutError(
                f"engine.offload_activations: no {self.nbytes:,} bytes of page-locked memory "
                f"on this host beside {self.count} times as many ({error}); switch it off, or "
                "give the job more memory"
            ) from error
        self._all.append(buffer)
        return buffer


def _mapped(nbytes: int) -> Tensor:
    """uint8 [nbytes] of whole pages, which are what is locked: huge ones where the system has
    them, as every page is cleared and pinned by itself (2.7 GB are 650,000 of 4 KiB).
    """
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A process that is forked while the GPU writes here would leave us with a copy of the
    # page, and the GPU with the page.
    for advice in ("MADV_DONTFORK", "MADV_HUGEPAGE"):
        try:
            memory.madvise(getattr(mmap, advice))
        except (AttributeError, OSError):  # a kernel without it
            continue
    return torch.frombuffer(memory, dtype=torch.uint8)


def _lock(buffer: Tensor) -> None:
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = int(cudart.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, _PORTABLE))
    if code != 0:
        raise RuntimeError(f"cudaHostRegister: error {code}")


def _unlock(every: list[Tensor], free: list[Tensor], pinned: bool) -> None:
    """Before the memory goes back to the system, which `every` keeps it from."""
    if pinned and every:
        torch.cuda.synchronize()
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        for buffer in every:
            cudart.cudaHostUnregister(buffer.data_ptr())
    free.clear()
    every.clear()
