"""What each rank owns of weights and optimizer state, as boxes of the global tensors that
a checkpoint names.

Megatron's distributed optimizer keeps, on each data-parallel rank, a flat range of each
parameter's values and moments. Upstream saves them in the shape of the parameter by
gathering all of it on every rank, in the way of the training (`fully_reshardable` in
megatron/core/optimizer/distrib_optimizer.py). But a flat range of a row-major tensor is
a few boxes of it, and the file format takes any boxes that cover a tensor once
(checkpoint/dcp_files.py). So each rank writes the boxes of its own range under upstream's
names: nothing is gathered, every value is written by one rank, and upstream's loader,
which reads by name and box, loads them into any layout.

Cost while training goes on: host memory for a copy of what this rank owns (its share of
12 bytes a parameter in fp32, 14 in bf16), kept from save to save, as touching fresh
memory takes longer than the copy; and the time of that copy.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator
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
from megatron.core.optimizer import DistributedOptimizer
from torch import Tensor

from alia_ctx.checkpoint.background_save import OwnedState, TensorBox
from alia_ctx.checkpoint.dcp_files import COMMON_STATE
from alia_ctx.checkpoint.dcp_store import StateReader
from alia_ctx.errors import CheckpointError

_SHARDING = "fully_reshardable"
_PREFIX = "optimizer.state."
_EXTRA_STATE = "_extra_state"


class OwnedRange:
    """The flat range of each parameter that this rank's distributed optimizer owns: the
    only place that names upstream's private parts
    (megatron/core/optimizer/distrib_optimizer.py).
    """

    def __init__(self, optimizer: DistributedOptimizer) -> None:
        self._optimizer = optimizer
        self.state_names: tuple[str, ...] = ("param", *optimizer.optimizer_state_keys)
        # Parameters lie in DDP's buffers, where they stay: an address finds them.
        parameters = sorted(optimizer.model_param_gbuf_map, key=lambda p: p.data_ptr())
        self._addresses = [parameter.data_ptr() for parameter in parameters]
        self._parameters = parameters

    def ranges(self) -> dict[torch.nn.Parameter, slice]:
        """Each parameter that this rank owns a part of, with that part of its flat values."""
        return {parameter: self._range(parameter) for parameter in self._parameters}

    def states(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """This rank's range of a parameter's main weight (`param`) and moments, flat."""
        states = self._optimizer._get_main_param_and_optimizer_states(parameter)
        return {name: states[name].detach() for name in self.state_names}

    def common_state(self) -> dict[str, Any]:
        """What the optimizer keeps apart from tensors: constants and steps by group."""
        return {
            **self._optimizer.state_dict(),
            "param_state_sharding_type": _SHARDING,
        }

    def values_of(self, shard: Tensor) -> Iterator[tuple[str | None, int, Tensor]]:
        """(state name or None for the weight, first position in the shard, flat values) of
        what this rank owns of `shard`, which is a parameter or a contiguous part of one.
        """
        parameter, before = self._parameter_of(shard)
        if parameter is None:
            return
        owned = self._range(parameter)
        start, stop = max(owned.start, before), min(owned.stop, before + shard.numel())
        if start >= stop:
            return
        yield None, start - before, parameter.detach().view(-1)[start:stop]
        part = slice(start - owned.start, stop - owned.start)
        for name, values in self.states(parameter).items():
            yield name, start - before, values[part]

    def _range(self, parameter: torch.nn.Parameter) -> slice:
        owned = self._optimizer._get_model_param_range_map(parameter)["param"]
        return slice(owned.start, owned.end)

    def _parameter_of(self, shard: Tensor) -> tuple[torch.nn.Parameter | None, int]:
        """The parameter whose memory `shard` lies in, and where in it, in values."""
        address = shard.data_ptr()
        index = bisect.bisect_right(self._addresses, address) - 1
        if index < 0:
            return None, 0
        parameter = self._parameters[index]
        before = (address - self._addresses[index]) // parameter.element_size()
        return (parameter, before) if before < parameter.numel() else (None, 0)


def owned_state(
    model: dict[str, Any], owned: OwnedRange | None, *, copies: bool = False
) -> OwnedState:
    """The share of this rank in a checkpoint of the sharded state dict `model` and of its
    optimizer.

    Without `owned` the weights are written by the first data-parallel rank, as there are
    no ranges. `copies` adds what model-parallel ranks hold alike (norms, tied
    embeddings), which one of them writes and all must read.
    """
    apply_factories(model)
    state = OwnedState([], {}, {})
    for sharded in nested_values(model):
        if isinstance(sharded, ShardedTensor):
            _add_tensor(state, sharded, owned, copies)
        elif isinstance(sharded, ShardedObject) and is_main_replica(sharded.replica_id):
            # TransformerEngine's hold a pickled recipe of FP8 that no scaling in use
            # here needs; Megatron-Core's own layers write None under the same name
            # (transformer_engine.pytorch.module.base, get_extra_state).
            extra = sharded.key.endswith(_EXTRA_STATE)
            state.objects[sharded.unique_key] = None if extra else sharded.data
    if dist.get_rank() == 0:
        state.objects[COMMON_STATE] = (
            {} if owned is None else {"optimizer": owned.common_state()}
        )
    return state


def table_keys(model: dict[str, Any]) -> set[str]:
    """Keys of the vocabulary's tables in the sharded state dict `model`: the tensors whose
    rows tensor parallelism pads, so that their number depends on the layout.
    """
    return {
        sharded.key
        for sharded in nested_values(model)
        if isinstance(sharded, ShardedTensor) and sharded.allow_shape_mismatch
    }


def read_owned(
    model: dict[str, Any],
    owned: OwnedRange,
    reader: StateReader,
    names: Collection[str],
) -> None:
    """Fill this rank's ranges of the states `names` in place, from boxes of any shape:
    each rank reads its own range alone.

    A main weight (`param`) is read from the weight itself, in the precision in which it
    is stored, where the checkpoint has no main weights. Padding of a vocabulary's table
    that it lacks is zero. Raises CheckpointError where the checkpoint does not hold
    these states, or not of these tensors.
    """
    tables = table_keys(model)
    state = owned_state(model, owned, copies=True)
    for box in state.boxes:
        name, _, key = box.key.removeprefix(_PREFIX).partition(".")
        if not box.key.startswith(_PREFIX) or name not in names:
            continue
        is_weight = name == "param" and box.key not in reader.tensors
        source = key if is_weight else box.key
        _fill(box, source, state.tensors[box.key][0], reader, key in tables)


def read_weights(model: dict[str, Any], reader: StateReader) -> None:
    """Fill this rank's part of the weights in place, from boxes of any shape and dtype.

    Raises CheckpointError where the checkpoint does not hold these tensors.
    """
    tables = table_keys(model)
    state = owned_state(model, None, copies=True)
    for box in state.boxes:
        shape = state.tensors[box.key][0]
        _fill(box, box.key, shape, reader, box.key in tables)


def _fill(
    box: TensorBox,
    source: str,
    shape: tuple[int, ...],
    reader: StateReader,
    is_table: bool,
) -> None:
    """Fill the values of a box, of a tensor of `shape`, from the tensor `source`."""
    if source not in reader.tensors:
        raise CheckpointError(f"{source} is not in it")
    stored, dtype = reader.tensors[source]
    if stored != shape and (not is_table or stored[1:] != shape[1:]):
        raise CheckpointError(f"{source} {list(shape)} is of shape {list(stored)}")
    values = box.values.view(box.sizes)
    there = min(box.sizes[0], max(stored[0] - box.offsets[0], 0))  # rows
    values[there:].zero_()
    if there:
        direct = values.device.type == "cpu" and values.dtype == dtype
        read = (
            values[:there]
            if direct
            else torch.empty_like(values[:there], dtype=dtype, device="cpu")
        )
        reader.read_box(source, box.offsets, read)
        if not direct:
            values[:there].copy_(read)


def _add_tensor(
    state: OwnedState, sharded: ShardedTensor, owned: OwnedRange | None, copies: bool
) -> None:
    """Add (a tensor-parallel shard of) a parameter and its moments to `state`: their names
    and shapes, and the boxes of this rank.
    """
    shape = tuple(sharded.global_shape)
    # Axes that the checkpoint puts before the tensor's own, where layers are stacked.
    lead = sharded.prepend_axis_num
    local_shape = (*(1 for _ in range(lead)), *sharded.data.shape)

    def add(name: str | None, start: int, values: Tensor) -> None:
        key = sharded.key if name is None else f"{_PREFIX}{name}.{sharded.key}"
        state.add(key, sharded.global_offset, local_shape, start, values)

    state.tensors[sharded.key] = (shape, sharded.dtype)
    if owned is None:
        if copies or is_main_replica(sharded.replica_id):
            add(None, 0, sharded.data.detach().view(-1))
        return
    for state_name in owned.state_names:
        state.tensors[f"{_PREFIX}{state_name}.{sharded.key}"] = (shape, torch.float32)
    # `replica_id` numbers the copies of a tensor among pipeline, tensor- and
    # data-parallel ranks, and 0 in all three means that this rank's copy is the one to
    # write. The last is left out of it: data-parallel ranks hold copies of the weight
    # but ranges of their own, of which each writes its own.
    if copies or not np.any(np.atleast_1d(sharded.replica_id)[:-1]):
        for name, start, values in owned.values_of(sharded.data):
            add(name, start, values)
