"""Host memory that a GPU copies to and from while it computes: page-locked, in buffers of
one size.
"""

from __future__ import annotations

import mmap
import weakref

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
    """

    def __init__(self, nbytes: int, *, pinned: bool) -> None:
        self.nbytes, self.pinned = nbytes, pinned
        self.count = 0
        self._free: list[Tensor] = []
        self._locked: list[int] = []
        end = weakref.finalize(self, _unlock, self._locked, self._free)
        end.atexit = False  # CUDA may be gone before

    def take(self) -> Tensor:
        """A buffer, uint8 [nbytes], with anything in it. LayoutError where the host has no
        memory for one more.
        """
        return self._free.pop() if self._free else self._allocated()

    def give(self, buffer: Tensor) -> None:
        """Back what `take` gave. Who takes it next must write only after its last reader."""
        self._free.append(buffer)

    def _allocated(self) -> Tensor:
        try:
            # Whole pages, which are what is locked.
            buffer = torch.frombuffer(mmap.mmap(-1, self.nbytes), dtype=torch.uint8)
            if self.pinned:
                self._lock(buffer)
        except (OSError, RuntimeError) as error:
            raise LayoutError(
                f"engine.offload_activations: no {self.nbytes:,} bytes of page-locked memory "
                f"on this host beside {self.count} times as many ({error}); switch it off, or "
                "give the job more memory"
            ) from error
        self.count += 1
        return buffer

    def _lock(self, buffer: Tensor) -> None:
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = int(cudart.cudaHostRegister(buffer.data_ptr(), self.nbytes, _PORTABLE))
        if code != 0:
            raise RuntimeError(f"cudaHostRegister: error {code}")
        self._locked.append(buffer.data_ptr())


def _unlock(locked: list[int], free: list[Tensor]) -> None:
    """Before the memory goes back to the system, which `free` keeps it from."""
    if locked:
        torch.cuda.synchronize()
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        for address in locked:
            cudart.cudaHostUnregister(address)
    free.clear()
