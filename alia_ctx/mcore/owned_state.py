"""Save weights and optimizer state while training goes on: copy what this rank owns, write
it in a thread, agree.

Megatron's distributed optimizer keeps, on each data-parallel rank, a flat range of each
parameter's values and moments. Upstream saves them in the shape of the parameter by
gathering all of it on every rank, in the way of the training (`fully_reshardable` in
megatron/core/optimizer/distrib_optimizer.py). But a flat range of a row-major tensor is
a few boxes of it, and the file format takes any boxes that cover a tensor once
(records.py). So each rank writes the boxes of its own range under upstream's names:
nothing is gathered, every value is written by one rank, and upstream's loader, which
reads by name and box, loads them into any layout.

Cost while training goes on: host memory for a copy of what this rank owns (its share of
12 bytes a parameter in fp32, 14 in bf16), kept from save to save, as touching fresh
memory takes longer than the copy; and the time of that copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    apply_factories,
    is_main_replica,
)
from torch import Tensor

from alia_ctx.checkpoint.background_save import OwnedState, Piece
from alia_ctx.checkpoint.dcp_files import COMMON_STATE
from alia_ctx.checkpoint.dcp_store import StateReader
from alia_ctx.errors import CheckpointError

_SHARDING = "fully_reshardable"
_PREFIX = "optimizer.state."


def owned_state(
    model: dict[str, Any], optimizer: Any | None, *, copies: bool = False
) -> OwnedState:
    """The share of this rank in a checkpoint of the sharded state dict `model` and of a
    distributed optimizer.

    Without `optimizer` the weights are written by the first data-parallel rank, as
    there are no ranges. `copies` adds what model-parallel ranks hold alike (norms, tied
    embeddings), which one of them writes and all must read.
    """
    apply_factories(model)
    owned = OwnedState([], {}, {})
    parameters = _by_address(optimizer)
    for sharded in nested_values(model):
        if isinstance(sharded, ShardedTensor):
            _own_tensor(owned, sharded, optimizer, parameters, copies)
        elif isinstance(sharded, ShardedObject) and is_main_replica(sharded.replica_id):
            owned.objects[sharded.unique_key] = sharded.data
    if dist.get_rank() == 0:
        common = (
            {}
            if optimizer is None
            else {**optimizer.state_dict(), "param_state_sharding_type": _SHARDING}
        )
        owned.objects[COMMON_STATE] = {"optimizer": common} if common else {}
    return owned


def read_moments(state: OwnedState, reader: StateReader) -> None:
    """Fill the optimizer's share of `state` in place, from boxes of any shape: each rank
    reads its own range alone.

    Raises CheckpointError where the checkpoint holds no optimizer state, or not of these tensors.
    """
    known = reader.tensors
    for piece in state.pieces:
        if not piece.key.startswith(_PREFIX):
            continue
        shape = state.tensors[piece.key][0]
        if piece.key in known and known[piece.key][0] != shape:
            raise CheckpointError(
                f"{piece.key} {list(shape)} is of shape {list(known[piece.key][0])}"
            )
        direct = piece.values.device.type == "cpu"
        box = (
            piece.values.view(piece.sizes)
            if direct
            else torch.empty(piece.sizes, dtype=piece.values.dtype)
        )
        reader.read_box(piece.key, piece.offsets, box)
        if not direct:
            piece.values.copy_(box.view(-1))


def boxes(
    shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and sizes of the boxes of a tensor of `shape` that are its values [start,
    stop) in row-major order.

    In that order too, and at most 2 * len(shape) - 1 of them: the rest of a row, whole
    rows, the beginning of a row.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield (start,) * len(shape), (stop - start,) * len(shape)
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner  # whole rows, where first < last
    if first > last:  # all within one row
        yield from _within(shape, last, start, stop)
        return
    yield from _within(shape, first - 1, start, first * inner)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    yield from _within(shape, last, last * inner, stop)


def _within(
    shape: tuple[int, ...], row: int, start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    before = row * math.prod(shape[1:])
    for offsets, sizes in boxes(shape[1:], start - before, stop - before):
        yield (row, *offsets), (1, *sizes)


def _by_address(optimizer: Any | None) -> dict[int, Tensor]:
    """Address -> parameter, of those of which this rank owns a range."""
    return (
        {}
        if optimizer is None
        else {param.data_ptr(): param for param in optimizer.model_param_gbuf_map}
    )


def _own_tensor(
    owned: OwnedState,
    sharded: Any,
    optimizer: Any | None,
    parameters: dict[int, Tensor],
    copies: bool,
) -> None:
    """Add one (tensor-parallel shard of a) parameter and its moments:

    their names, and the boxes of this rank.
    """
    shape = tuple(sharded.global_shape)
    owned.tensors[sharded.key] = (shape, sharded.dtype)
    for name in _state_names(optimizer):
        owned.tensors[_state_key(name, sharded)] = (shape, torch.float32)
    if optimizer is None:
        if is_main_replica(sharded.replica_id):
            _add(owned, sharded.key, sharded, 0, sharded.data.detach().reshape(-1))
    elif copies or not any(
        np.atleast_1d(sharded.replica_id)[:-1]
    ):  # the last counts data-parallel copies: ranges
        for key, start, values in _own_range(sharded, optimizer, parameters):
            _add(owned, key, sharded, start, values)


def _own_range(
    sharded: Any, optimizer: Any, parameters: dict[int, Tensor]
) -> Iterator[tuple[str, int, Tensor]]:
    """Key, first position in the shard, and flat values of what the optimizer of this
    rank holds of `sharded`.
    """
    found = _parameter_of(sharded.data, parameters)
    if found is None:
        return
    parameter, before = found
    mine = optimizer._get_model_param_range_map(parameter)["param"]
    start, stop = max(mine.start, before), min(mine.end, before + sharded.data.numel())
    if start >= stop:
        return
    yield sharded.key, start - before, parameter.detach().view(-1)[start:stop]
    states = optimizer._get_main_param_and_optimizer_states(parameter)
    for name in _state_names(optimizer):
        yield (
            _state_key(name, sharded),
            start - before,
            states[name].detach()[start - mine.start : stop - mine.start],
        )


def _state_names(optimizer: Any | None) -> tuple[str, ...]:
    return () if optimizer is None else ("param", *optimizer.optimizer_state_keys)


def _state_key(name: str, sharded: Any) -> str:
    return f"{_PREFIX}{name}.{sharded.key}"


def _parameter_of(
    data: Tensor, parameters: dict[int, Tensor]
) -> tuple[Tensor, int] | None:
    """The parameter that `data` is (a contiguous part of), and where in it `data`
    begins, in values.
    """
    address = data.data_ptr()
    parameter = parameters.get(address)
    if parameter is not None:
        return parameter, 0
    for start, parameter in parameters.items():
        if start < address < start + parameter.numel() * parameter.element_size():
            return parameter, (address - start) // parameter.element_size()
    return None


def _add(owned: OwnedState, key: str, sharded: Any, start: int, values: Tensor) -> None:
    """Add flat `values`, those from `start` on of the local shard, box by box."""
    lead = sharded.prepend_axis_num
    done = 0
    for offsets, sizes in boxes(
        tuple(sharded.data.shape), start, start + values.numel()
    ):
        place = (
            *sharded.global_offset[:lead],
            *(
                a + b
                for a, b in zip(sharded.global_offset[lead:], offsets, strict=True)
            ),
        )
        size = math.prod(sizes)
        owned.pieces.append(
            Piece(
                key,
                place,
                (*(1 for _ in range(lead)), *sizes),
                values[done : done + size],
            )
        )
        done += size
