"""Offloaded inputs of layers, on a stream whose copies are as late as a stream may make
them, and against autograd without.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from alia_ctx.errors import LayoutError
from alia_ctx.nn.input_offload import InputOffload, SideStream
from alia_ctx.nn.pinned_memory import PinnedBuffers

TOKENS, WIDTH = 5, 8
NBYTES = TOKENS * WIDTH * 4
SPARE = 32  # tells a buffer from an input by the size of its storage


class LateStream(SideStream):
    """Copies when it is waited for, and not before. Until then the target is poison, and
    memory that was let go in between is an error, which a GPU would not report.
    """

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.begun: list[Any] = []
        self.ended = 0
        self.to_device: list[StorageWeakRef] = []

    def copy(self, target: Tensor, source: Tensor) -> int:
        assert target.nbytes == source.nbytes
        self.begun.append((self._place(target), self._place(source), target.nbytes))
        if target.untyped_storage().nbytes() == NBYTES:
            self.to_device.append(StorageWeakRef(target.untyped_storage()))
            target.fill_(float("nan"))
        return len(self.begun)

    def wait(self, copy: int) -> None:
        for (to, target), (start, source), nbytes in self.begun[self.ended : copy]:
            assert not target.expired(), "a target was let go before its copy ended"
            assert not source.expired(), "a source was let go before its copy ended"
            ctypes.memmove(to, start, nbytes)
        self.ended = max(self.ended, copy)

    @staticmethod
    def _place(tensor: Tensor) -> tuple[int, StorageWeakRef]:
        return tensor.data_ptr(), StorageWeakRef(tensor.untyped_storage())


class Recomputed(torch.autograd.Function):
    """Keeps its input alone, saved after its forward, as Megatron-Core's does."""

    @staticmethod
    def forward(ctx: Any, layer: Any, x: Tensor) -> Tensor:
        ctx.layer = layer
        with torch.no_grad():
            output = layer(hidden_states=x)
        ctx.save_for_backward(x)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.layer(hidden_states=x)
        torch.autograd.backward(output, gradient)
        return None, x.grad


class Layer(torch.nn.Module):
    def __init__(self, seen: list[int], alive: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
        self.seen, self.alive = seen, alive

    def forward(self, hidden_states: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # it is computed again
            self.seen.append(self.alive())
        return hidden_states + torch.tanh(hidden_states @ self.weight)


class Stack(torch.nn.Module):
    """Layers that are computed again, and what keeps their inputs away if asked."""

    def __init__(self, layers: int, rows_in_flight: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inputs: list[StorageWeakRef] = []
        self.most: list[int] = []
        self.layers = torch.nn.ModuleList(
            Layer(self.most, self.alive) for _ in range(layers)
        )
        self.stream, self.offload = LateStream(), None
        if rows_in_flight:
            self.pool = PinnedBuffers(NBYTES + SPARE, pinned=False)
            self.offload = InputOffload(
                self.layers, self.pool, rows_in_flight, self.stream
            )

    def alive(self) -> int:
        """Inputs on the device, from a forward or back from the host."""
        known = [*self.inputs, *self.stream.to_device]
        return sum(not each.expired() for each in known)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            self.inputs.append(StorageWeakRef(x.untyped_storage()))
            x = Recomputed.apply(layer, x)
        return (x**2).sum()

    def row(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(TOKENS, WIDTH, generator=generator).requires_grad_() * 1
        if self.offload is None:
            return self(x)
        with self.offload.row():
            return self(x)

    def update(self, order: str) -> list[Tensor]:
        """Gradients of rows whose forwards (F) and backwards (B, of the first that waits; L,
        of the last) come in `order`.
        """
        self.zero_grad()
        waiting: list[Tensor] = []
        for number, step in enumerate(order):
            if step == "F":
                waiting.append(self.row(number))
            else:
                waiting.pop(0 if step == "B" else -1).backward()
        return [layer.weight.grad.clone() for layer in self.layers]


ORDERS = {"FBFBFB": 1, "FFBFBB": 2, "FFFBFBFBBB": 3, "FFBB": 4, "FFFLLL": 3}


@pytest.mark.parametrize("layers", [1, 2, 3, 6])
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_those_without(order: str, layers: int) -> None:
    plain, away = Stack(layers), Stack(layers, ORDERS[order])
    for _ in range(3):
        expected, found = plain.update(order), away.update(order)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
    assert away.stream.begun or layers == 1


@pytest.mark.parametrize("order", [o for o in ORDERS if "L" not in o])
def test_two_inputs_are_on_the_device_however_many_there_are(order: str) -> None:
    away, plain = Stack(8, ORDERS[order]), Stack(8)
    for stack in (away, plain):
        stack.update(order)
    # The row's own input is held by who brings it, here by the graph until its backward.
    assert max(away.most) <= 2
    assert max(plain.most) >= 8


@pytest.mark.parametrize("order", ORDERS)
def test_host_memory_does_not_grow_after_the_first_update(order: str) -> None:
    rows, away = ORDERS[order], Stack(4, ORDERS[order])
    away.update(order)
    first = away.pool.count
    in_flight = max(2, rows) if "FF" in order else 1
    assert first <= (4 * in_flight if in_flight > 1 else 3)
    for _ in range(5):
        away.update(order)
    assert away.pool.count == first
    gc.collect()
    assert away.alive() == 0, "something of a row is on the device after its backward"


def test_the_last_input_of_a_row_alone_never_leaves() -> None:
    away = Stack(3, 1)
    away.update("FB")
    assert len(away.stream.begun) == 2 + 1, "two leave, and one is let go and returns"


def test_copies_go_on_while_layers_compute() -> None:
    away = Stack(6, 1)
    copies: list[tuple[int, int]] = []  # begun, of these not waited for yet
    for layer in away.layers:
        layer.register_forward_pre_hook(
            lambda *_: copies.append(
                (len(away.stream.begun), len(away.stream.begun) - away.stream.ended)
            ),
            with_kwargs=True,
        )
    loss = away.row(0)
    # Input 0 leaves after layer 1, whose own input stays; it has layer 2 to do so.
    assert copies == [(0, 0), (0, 0), (1, 1), (2, 1), (3, 1), (4, 1)]
    copies.clear()
    loss.backward()
    # Layers 5 and 4 find theirs; while 4 is computed again 3 returns, and so on.
    assert copies == [(5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (9, 0)]


def test_a_row_without_its_backward_is_forgotten() -> None:
    away, plain = Stack(4, 2), Stack(4)
    lost = [away.row(7), away.row(8)]
    expected, found = plain.update("FFBFBB"), away.update("FFBFBB")
    assert all(map(torch.equal, found, expected))
    assert away.pool.count <= 2 * 4 + 4
    with pytest.raises(RuntimeError, match="taken before"):
        lost[0].backward()


def test_a_second_backward_is_refused() -> None:
    loss = Stack(2, 1).row(0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward a row"):
        loss.backward()


def test_nothing_is_kept_without_gradients() -> None:
    away = Stack(3, 1)
    with torch.no_grad():
        away.row(0)
    assert not away.stream.begun and not away.pool.count
    assert away.alive() == 0


@pytest.mark.parametrize("way", ["plainly", "a copy"])
def test_a_layer_whose_input_would_stay_is_no_silent_matter(way: str) -> None:
    """One that is called with another tensor than is kept, or that keeps none."""
    away = Stack(3, 1)

    def forward(x: Tensor) -> Tensor:
        for layer in away.layers:

            def called(hidden_states: Tensor, layer: Any = layer) -> Any:
                other = layer is away.layers[1] and way == "a copy"
                given = hidden_states.clone() if other else hidden_states
                return layer(hidden_states=given)

            if layer is away.layers[1] and way == "plainly":
                with torch.no_grad():  # nothing of it is kept
                    more = layer(hidden_states=x)
                x = x + more
            else:
                x = Recomputed.apply(called, x)
        return x.sum()

    away.forward = forward  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="2 of 3 layers kept their input"):
        away.row(0)


class _OutOfMemoryError(Exception):
    pass


@pytest.mark.parametrize("order", ["FB", "FFBB"])
@pytest.mark.parametrize("backward", [False, True])
def test_an_update_after_one_that_an_error_ended(order: str, backward: bool) -> None:
    """In the midst of layer 2, forward or computed again: nothing of it is left after."""
    away, plain = Stack(5, order.count("F")), Stack(5)
    away.update(order)
    buffers = away.pool.count

    def fail(*_: Any) -> None:
        if torch.is_grad_enabled() == backward:
            raise _OutOfMemoryError

    hook = away.layers[2].register_forward_pre_hook(fail)
    for _ in range(4):
        with pytest.raises(_OutOfMemoryError):
            away.update(order)
    hook.remove()
    expected, found = plain.update(order), away.update(order)
    assert all(map(torch.equal, found, expected))
    assert away.pool.out == 0, "a buffer did not come back"
    assert away.pool.count <= 2 * buffers
    gc.collect()
    assert away.alive() == 0, "something of the broken update is on the device"


def test_a_host_without_memory_is_an_error_that_says_so() -> None:
    pool = PinnedBuffers(1 << 60, pinned=False)
    with pytest.raises(LayoutError, match=r"engine\.offload_activations: no 1,152,9"):
        pool.take()
    assert pool.count == 0
