"""Inputs of recomputed layers wait in host memory between forward and backward; their
copies go beside the computing.

With full recomputation a layer keeps its input alone. While a layer computes, the input
of the last but one leaves on a side stream; while a layer's backward computes, the input
of the next to come returns. So two inputs are on the device in the backward, where memory
is scarce, and three in the forward, whatever the number of layers and rows.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from alia_ctx.nn.pinned_memory import PinnedBuffers

# Inputs on the device beside that of the layer that runs forward: the one before, which may
# be the last and stay, and the one on its way.
INPUTS_HERE = 2


class SideStream:
    """Copies in an order of their own beside the current stream; on a host, where there are
    no streams, in program order.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, target: Tensor, source: Tensor) -> Any:
        """Copy after all that the current stream was given so far, and all copies before.
        Returns what `wait` takes.
        """
        if self._stream is None:
            return target.copy_(source)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, copy: Any) -> None:
        """What the current stream is given from now on comes after that copy."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_event(copy)


class _Input:
    """A layer's input, from the forward that keeps it to the backward that takes it.

    here: the tensor, while it is on the device or on its way there.
    away: its buffer on the host, once it has begun to leave.
    copies: there and back, those that were begun.
    taken: its backward has it, or never came.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.nbytes = tensor.nbytes
        self.here: Tensor | None = tensor
        self.away: Tensor | None = None
        self.copies: list[Any] = []
        self.taken = False

    def on_host(self) -> Tensor:
        assert self.away is not None
        return self.away[: self.nbytes].view(self.dtype).view(self.shape)


class InputOffload:
    """Keeps what recomputed layers save of a row, their inputs, in host memory.

    Right for any order in which inputs are taken; fast for that of 1F1B: rows in the
    order of their forwards, and of each its layers from the last to the first. The last
    input of a row whose backward comes next never leaves.

    There is no `record_stream`, after which the allocator would give memory out again
    only once it has seen the copy's end: the current stream waits for the copy before it
    lets go of the memory, and memory for what returns is allocated on it.

    Args:
        layers: whose inputs leave; they take them as `hidden_states`.
        buffers: host memory, each large enough for an input.
        rows_in_flight: rows at most that are between forward and backward.
        stream: what copies.
    """

    def __init__(
        self,
        layers: Iterable[torch.nn.Module],
        buffers: PinnedBuffers,
        rows_in_flight: int,
        stream: SideStream,
    ) -> None:
        self.buffers, self.rows_in_flight = buffers, rows_in_flight
        self._stream = stream
        self._rows: deque[list[_Input]] = deque()
        self._held: list[_Input] = []  # on the device since their forward, oldest first
        self._row: list[_Input] | None = None  # of the forward that runs
        self._entered: tuple[int, torch.Size] | None = None
        self._layers = 0
        for layer in layers:
            self._layers += 1
            layer.register_forward_pre_hook(self._note, with_kwargs=True)

    @contextlib.contextmanager
    def row(self) -> Iterator[None]:
        """Around the forward of a row. Without gradients, where nothing is kept, nothing.
        RuntimeError where a layer did not keep its input, or kept a copy: it would stay.
        """
        if not torch.is_grad_enabled():
            yield
            return
        while len(self._rows) >= self.rows_in_flight:
            for each in self._rows.popleft():  # their backward never came
                self._take(each)
        row = self._row = []
        self._rows.append(row)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._row = self._entered = None
        if len(row) != self._layers:
            raise RuntimeError(
                f"{len(row)} of {self._layers} layers kept their input to be computed again"
            )
        if len(self._rows) > 1:  # the backward of another comes before this one's
            for each in self._held:
                self._leave(each)

    def _note(self, layer: torch.nn.Module, arguments: Any, named: Any) -> None:
        if self._row is not None:
            hidden = named["hidden_states"]
            self._entered = hidden.data_ptr(), hidden.shape

    def _pack(self, tensor: Tensor) -> Tensor | _Input:
        """What autograd keeps for `tensor`. A layer's input comes after the layer's forward
        has been given to the current stream.
        """
        if self._row is None or (tensor.data_ptr(), tensor.shape) != self._entered:
            return tensor
        self._entered = None
        kept = _Input(tensor.detach())
        for each in self._held:
            self._leave(each)
        while len(self._held) >= INPUTS_HERE:
            self._let_go(self._held[0])
        self._held.append(kept)
        self._row.append(kept)
        return kept

    def _unpack(self, kept: Tensor | _Input) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if kept.taken:
            raise RuntimeError("a layer's input was taken before: one backward a row")
        order = [each for row in self._rows for each in reversed(row)]
        following = order[order.index(kept) + 1 :][:1]
        for each in [*self._held]:
            if each is not kept and each not in following:
                self._let_go(each)
        self._fetch(kept)
        tensor = self._take(kept)
        for row in [*self._rows]:
            if kept in row:
                row.remove(kept)
                if not row:
                    self._rows.remove(row)
        for each in following:
            self._fetch(each)
        assert tensor is not None
        return tensor

    def _leave(self, kept: _Input) -> None:
        """Begin the copy to the host, once."""
        if kept.away is None and kept.here is not None:
            kept.away = self.buffers.take()
            kept.copies.append(self._stream.copy(kept.on_host(), kept.here))

    def _let_go(self, kept: _Input) -> None:
        """Of its memory on the device, after the copy."""
        self._leave(kept)
        self._stream.wait(kept.copies[-1])
        kept.here = None
        self._held.remove(kept)

    def _fetch(self, kept: _Input) -> None:
        """Begin the copy back, unless it is on the device or on its way."""
        if kept.here is None:
            kept.here = torch.empty(kept.shape, dtype=kept.dtype, device=kept.device)
            kept.copies.append(self._stream.copy(kept.here, kept.on_host()))

    def _take(self, kept: _Input) -> Tensor | None:
        """Its tensor, after all copies, and its buffer back: the side stream, which alone
        writes there, reads it before.
        """
        if kept in self._held:
            self._held.remove(kept)
        for copy in kept.copies[-1:]:
            self._stream.wait(copy)
        if kept.away is not None:
            self.buffers.give(kept.away)
        tensor, kept.here, kept.away, kept.taken = kept.here, None, None, True
        return tensor
