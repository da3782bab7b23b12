"""Run Megatron-Core on a machine without CUDA: one process-wide adapter, active only where
there is none.

Megatron-Core asks for `device="cuda"`, pinned memory, CUDA streams and CUDA random
states in many places. On a host without CUDA each has an exact equivalent on the CPU,
so nothing upstream is forked: a `TorchFunctionMode` rewrites the arguments of torch
calls, and the few `torch.cuda` functions that answer questions about the device get
stand-ins. What is computed is unchanged; only where.

Cost: about a microsecond per torch call made from Python, which tiny models notice and
real ones do not run on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_device = torch.device("cpu")
# Megatron's optimizers tell half from full precision by these names.
_CUDA_TYPE_NAMES = {
    f"{place}.{name}": f"torch.cuda.{name}"
    for place in ("torch", "torch.meta")
    for name in ("FloatTensor", "HalfTensor", "BFloat16Tensor")
}
_active: HostDevice | None = None


class HostDevice(TorchFunctionMode):
    """Redirects every request for a CUDA device to the host's while it is entered."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if kwargs:
            kwargs = _on_host(kwargs)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            name = func(*args)
            return _CUDA_TYPE_NAMES.get(name, name)
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], _device, *args[2:])
        return func(*args, **(kwargs or {}))


def _on_host(kwargs: dict[str, Any]) -> dict[str, Any]:
    if "device" not in kwargs and "pin_memory" not in kwargs:
        return kwargs
    changed = dict(kwargs)
    if _names_cuda(changed.get("device")):
        changed["device"] = _device
    changed.pop("pin_memory", None)
    return changed


def _names_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return (isinstance(device, str) and device.startswith("cuda")) or (
        type(device) is int
    )


class _HostStream:
    """A CUDA stream where there is only program order: every wait is already over.

    It stands in for a class, and libraries write `torch.cuda.Stream | None` in
    annotations, so it is one.
    """

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: object = None) -> _HostStream:
        return self

    def __enter__(self) -> _HostStream:
        return self

    def __exit__(self, *exception: object) -> None: ...


def _stand_ins() -> dict[str, Callable[..., Any]]:
    return {
        "current_device": lambda: _device,
        "synchronize": lambda *args, **kwargs: None,
        "empty_cache": lambda: None,
        "current_stream": lambda *args, **kwargs: _HostStream(),
        "default_stream": lambda *args, **kwargs: _HostStream(),
        "Stream": _HostStream,
        "stream": lambda stream: contextlib.nullcontext(),
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
    }


def activate(device: torch.device | None = None) -> bool:
    """Install the adapter for the rest of the process, once. `device` (default: the CPU)
    takes the place of CUDA's.

    Returns whether it is active: False with CUDA.
    """
    global _active, _device
    _device = _device if device is None else device
    if torch.cuda.is_available():
        return False
    if _active is None:
        for name, stand_in in _stand_ins().items():
            setattr(torch.cuda, name, stand_in)
        # Upstream's tensor_parallel/random.py calls these under their module's name, which
        # holds the originals; without CUDA they raise.
        torch.cuda.random.get_rng_state = torch.cuda.get_rng_state
        torch.cuda.random.set_rng_state = torch.cuda.set_rng_state
        _active = HostDevice()
        _active.__enter__()
    return True
