"""Buffers of host memory, by a stand-in for CUDA's part that keeps books."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from alia_ctx.errors import LayoutError
from alia_ctx.nn.pinned_memory import PinnedBuffers

NBYTES = 10_000


def is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(each, 16) for each in line.split()[0].split("-"))
        if start <= address < stop:
            return True
    return False


class Cudart:
    """Locks like CUDA: an address once, and only memory that is mapped can be given up."""

    def __init__(self, room: int = 100) -> None:
        self.locked: dict[int, int] = {}
        self.room = room

    def cudaHostRegister(  # noqa: N802
        self, address: int, nbytes: int, flags: int
    ) -> int:
        if address in self.locked:
            return 712  # cudaErrorHostMemoryAlreadyRegistered
        if len(self.locked) == self.room:
            return 2  # cudaErrorMemoryAllocation
        self.locked[address] = nbytes
        return 0

    def cudaHostUnregister(  # noqa: N802
        self, address: int
    ) -> int:
        assert is_mapped(address), "unmapped before"
        del self.locked[address]
        return 0


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    stand_in = Cudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: stand_in)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return stand_in


def test_all_are_locked_at_first_and_unlocked_at_last(cudart: Cudart) -> None:
    told: list[int] = []
    pool = PinnedBuffers(NBYTES, pinned=True)
    pool.allocate(3, told.append)
    assert told == [1, 2, 3]
    assert list(cudart.locked.values()) == [NBYTES] * 3
    first, second = pool.take(), pool.take()
    assert first.data_ptr() in cudart.locked and len(first) == NBYTES
    first.fill_(7)
    pool.give(first)
    assert (pool.count, pool.out, pool.most) == (3, 1, 2)
    # What its taker lost: mapped and locked for as long as the pool is there.
    del first, second
    gc.collect()
    for _ in range(3):
        pool.take()
    assert pool.count == 4, "the lost one is given out again"
    del pool
    gc.collect()
    assert not cudart.locked


def test_a_buffer_that_cannot_be_locked_is_said(cudart: Cudart) -> None:
    cudart.room = 2
    pool = PinnedBuffers(NBYTES, pinned=True)
    with pytest.raises(LayoutError, match=r"beside 2 times as many \(cudaHostRegister"):
        pool.allocate(3)
    assert pool.count == 2
    cudart.room = 3
    pool.allocate(3)
    assert pool.count == 3
