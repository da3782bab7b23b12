"""Keep activations in host memory between forward and backward: slow, but it fits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Below this a copy's latency costs more than the memory is worth: offsets, statistics,
# norms' weights.
_LEAST_BYTES = 1 << 20


def offload_activations(
    parameters: Iterable[Tensor], least_bytes: int = _LEAST_BYTES
) -> contextlib.AbstractContextManager[Any]:
    """A context in which autograd keeps what it saves for the backward in (pinned) host memory.

    Weights stay where they are: `torch.autograd.graph.save_on_cpu` would copy them out
    and in again with every use, and they are not activations. Copies go in the order of
    the stream, so nothing waits but the stream itself.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def pack(tensor: Tensor) -> Any:
        if (
            tensor.nbytes < least_bytes
            or tensor.untyped_storage().data_ptr() in weights
        ):
            return tensor
        kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, kept.copy_(tensor, non_blocking=True)

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, kept = packed
        # a copy even on a host, where it shows in tests what on a GPU would be another tensor
        returned: Tensor = kept.to(device, non_blocking=True, copy=True)
        return returned

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
