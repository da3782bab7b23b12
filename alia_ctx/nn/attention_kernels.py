"""Variable-length causal attention kernels behind one call, and the rule that picks one.

Every kernel here aligns the causal mask at the bottom right: where a document has fewer
queries than keys, its last query sees its last key. FlashAttention does so since 2.1
(its README), torch's varlen attention is the same kernel; which one is installed shows in
what it computes (`try_kernel`). Shapes: Tq queries, Tk keys,
h query heads, g key/value heads (h a multiple of g), d head_dim.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alia_ctx.errors import STOP_REQUESTS, LayoutError, NotInstalledError
from alia_ctx.nn.attention_reference import Tile, blocked_attention, tiles
from alia_ctx.nn.dtypes import DTYPES
from alia_ctx.nn.kernel_trial import Packing, wrong_results
from alia_ctx.optional_packages import distribution_of, reason
from alia_ctx.spec.compute_capability import FASTEST_KERNELS, GENERAL_KERNELS
from alia_ctx.spec.execution import Precision
from alia_ctx.spec.model import ModelSpec


@dataclass(frozen=True)
class VarlenSpec:
    """Documents of one kernel call: the same offsets on the device (int32 [n+1]) and on
    the host (int64 [n+1]).

    The longest lengths are Python integers, so that no kernel launch waits for the device.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    query_offsets: np.ndarray
    key_offsets: np.ndarray

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """The reference's cuts, formed once a row where it is used."""
        return tiles(self.query_offsets, self.key_offsets)

    @classmethod
    def build(
        cls,
        query_offsets: np.ndarray,
        key_offsets: np.ndarray,
        device: torch.device | str,
    ) -> VarlenSpec:
        """Spec of one chunk; each document must have at least as many keys as queries."""
        on_device = [
            torch.from_numpy(o.astype(np.int32)).to(device)
            for o in (query_offsets, key_offsets)
        ]
        return cls(
            cu_seqlens_q=on_device[0],
            cu_seqlens_k=on_device[1],
            max_seqlen_q=int(np.diff(query_offsets).max()),
            max_seqlen_k=int(np.diff(key_offsets).max()),
            query_offsets=query_offsets,
            key_offsets=key_offsets,
        )


Attend = Callable[[Tensor, Tensor, Tensor, VarlenSpec, float], Tensor]


@dataclass(frozen=True)
class Kernel:
    """A kernel that can run on this machine;

    `attend(q, k, v, spec, softmax_scale)` is differentiable and comes from `module`.
    """

    name: str
    attend: Attend
    module: str = ""

    @property
    def made_by(self) -> str:
        """`flash-attn 2.8.3, `: package and version, to begin what is said of it."""
        return f"{distribution_of(self.module)}, " if self.module else ""


@dataclass(frozen=True)
class KernelChoice:
    """A kernel, and why none before it was taken: a line each, with package and remedy, or
    that this one was asked for by name. One as fast that is not installed is not said.
    """

    kernel: Kernel
    passed_over: tuple[str, ...] = ()


def varlen_attention(
    q_qhd: Tensor,
    k_kgd: Tensor,
    v_kgd: Tensor,
    spec: VarlenSpec,
    kernel: Kernel,
    softmax_scale: float,
) -> Tensor:
    """Causal attention of packed documents:

    [Tq, h, d] from q [Tq, h, d] and k, v [Tk, g, d] (any token stride).
    """
    return kernel.attend(q_qhd, k_kgd, v_kgd, spec, softmax_scale)


@dataclass(frozen=True)
class Heads:
    """What a kernel shall compute: `queries` heads of queries, `groups` of keys and values,
    `dim` wide, of `dtype`.
    """

    queries: int
    groups: int
    dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: ModelSpec, precision: Precision, tp: int = 1) -> Heads:
        """What each of `tp` ranks that share a model's heads computes."""
        return cls(
            model.num_attention_heads // tp,
            model.num_key_value_heads // tp,
            model.head_dim,
            DTYPES[precision],
        )


def resolve_kernel(name: str, device_type: str) -> Kernel:
    """The kernel of `choose_kernel`, whose arguments and errors these are."""
    return choose_kernel(name, device_type).kernel


def choose_kernel(
    name: str, device_type: str, heads: Heads | None = None, *, trial: bool = True
) -> KernelChoice:
    """The kernel called `name` for tensors on `device_type` ("cuda" or "cpu").

    `auto` takes the fastest importable one on a GPU and `reference` on a CPU. On a GPU it
    takes `reference`, slower by orders of magnitude, in fp32 alone, which no other has.
    With `heads` a kernel has to compute short documents of them on the GPU as a dense
    computation does, forward and backward, before it is taken (but for `trial=False`): what
    it cannot do, or does wrong, is said here and not in the first update. A slower one that
    is asked for by name is said with `heads` too, without looking whether a faster one is
    there. Raises LayoutError with package and remedy if the kernel is unknown, not
    installed, not made for the device or the heads, or wrong.
    """
    if name == "auto":
        if device_type == "cuda":
            return _fastest(heads, trial)
        return KernelChoice(_KERNELS["reference"].load())
    if name not in _KERNELS:
        raise LayoutError(
            f"attention kernel {name!r} is unknown; choose one of auto, {', '.join(_KERNELS)}"
        )
    source = _KERNELS[name]
    if source.needs_cuda and device_type != "cuda":
        raise LayoutError(
            f"attention kernel {name} needs a GPU and this is {device_type}; use reference or auto"
        )
    if heads is None or device_type != "cuda":
        return KernelChoice(source.load())
    kernel = source.load_for(heads, trial)
    return KernelChoice(kernel, _named_though_slower(name, heads))


def _named_though_slower(name: str, heads: Heads) -> tuple[str, ...]:
    """That a kernel is not of the fastest for this GPU and these heads; none where it is."""
    special = FASTEST_KERNELS.get(torch.cuda.get_device_capability()[0], ())
    if name == "reference":
        if heads.dtype not in _HALF:
            return (_only_half(heads.dtype),)
    elif not special or name in special:
        return ()
    faster = (
        f", which takes {' or '.join(special)} where it is there" if special else ""
    )
    return (f"engine.attention={name} asks for it; set engine.attention=auto{faster}",)


def _fastest(heads: Heads | None, trial: bool) -> KernelChoice:
    missing: dict[str, LayoutError] = {}
    special = FASTEST_KERNELS.get(torch.cuda.get_device_capability()[0], ())
    for name in (*special, *GENERAL_KERNELS):
        try:
            kernel = _KERNELS[name].load_for(heads, trial)
        except LayoutError as error:
            missing[name] = error
            continue
        # Those of one kind are about as fast as each other (docs/benchmarks/gpu.md).
        first = [missing[other] for other in special if other in missing]
        if name in special:
            first = [why for why in first if not isinstance(why, NotInstalledError)]
        return KernelChoice(kernel, tuple(map(str, first)))
    if heads is not None and heads.dtype not in _HALF:
        reference = _KERNELS["reference"].load_for(heads, trial)
        return KernelChoice(reference, (_only_half(heads.dtype),))
    raise LayoutError(
        "no attention kernel for this GPU:\n  "
        + "\n  ".join(map(str, missing.values()))
    )


_HALF = (torch.bfloat16, torch.float16)


def _only_half(dtype: torch.dtype) -> str:
    return (
        "the fast kernels compute in 16 bits and not in "
        f"{str(dtype).removeprefix('torch.')}; set engine.precision=bf16"
    )


def try_kernel(kernel: Kernel, heads: Heads, device: torch.device | str) -> None:
    """Compute a few documents of `heads`, forward and backward, and hold output and
    gradients against a dense computation; LayoutError with the kernel's package and what is
    wrong, or what the kernel says, where it does not pass.
    """
    what = f"{heads.queries} heads of {heads.dim} over {heads.groups}"
    shape = (heads.queries, heads.groups, heads.dim)

    def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
        query_offsets, key_offsets = map(np.array, packing)
        spec = VarlenSpec.build(query_offsets, key_offsets, device)
        return kernel.attend(q, k, v, spec, heads.dim**-0.5)

    try:
        wrong = wrong_results(attend, *shape, heads.dtype, device)
    except (*STOP_REQUESTS, torch.OutOfMemoryError):
        raise  # it says nothing of the kernel
    except BaseException as error:
        # Each package refuses in its own way: assertions, errors of its compiler, an exit
        # where it imports what it needs as it is called.
        raise LayoutError(
            f"attention kernel {kernel.name} does not compute {what} "
            f"({kernel.made_by}{reason(error)}); name another kernel (engine.attention)"
        ) from error
    if wrong is not None:
        raise LayoutError(
            f"attention kernel {kernel.name} computes {what} wrongly "
            f"({kernel.made_by}{wrong}); install another release of it, or set "
            "engine.attention (auto takes what computes right)"
        )


@dataclass(frozen=True)
class _Source:
    """Where a kernel comes from: `module.function`, who provides it, and how to call it."""

    name: str
    module: str
    function: str
    remedy: str
    adapt: Callable[[Callable[..., Any]], Attend]
    needs_cuda: bool = True

    def load(self) -> Kernel:
        try:
            function = getattr(importlib.import_module(self.module), self.function)
        except STOP_REQUESTS:
            raise
        except BaseException as error:
            # A package that is there in part, or built for another torch, fails with
            # errors of any type while it is imported, or asks the program to end.
            raise NotInstalledError(
                f"attention kernel {self.name} needs {self.module}.{self.function} "
                f"({reason(error)}); {self.remedy}"
            ) from error
        return Kernel(self.name, self.adapt(function), self.module)

    def load_for(self, heads: Heads | None, trial: bool) -> Kernel:
        """The kernel for a GPU, where it computes `heads` there."""
        kernel = self.load()
        if heads is None:
            return kernel
        if self.needs_cuda and heads.dtype not in _HALF:
            raise LayoutError(
                f"attention kernel {self.name}: {_only_half(heads.dtype)} or "
                "engine.attention=reference"
            )
        if trial:
            try_kernel(kernel, heads, "cuda")
        return kernel


def _adapt_flash(function: Callable[..., Any]) -> Attend:
    """FlashAttention 2, 3 and 4 share these argument names;

    3 and 4 may return (output, logsumexp).
    """
    known = inspect.signature(function).parameters

    def attend(
        q_qhd: Tensor,
        k_kgd: Tensor,
        v_kgd: Tensor,
        spec: VarlenSpec,
        softmax_scale: float,
    ) -> Tensor:
        options = {
            "cu_seqlens_q": spec.cu_seqlens_q,
            "cu_seqlens_k": spec.cu_seqlens_k,
            "max_seqlen_q": spec.max_seqlen_q,
            "max_seqlen_k": spec.max_seqlen_k,
            "softmax_scale": softmax_scale,
            "causal": True,
        }
        if torch.are_deterministic_algorithms_enabled():
            if "deterministic" not in known:
                raise LayoutError("it has no deterministic backward")
            # It costs speed and memory of the backward: dQ without atomic additions.
            options["deterministic"] = True
        out = function(q_qhd, k_kgd, v_kgd, **options)
        output: Tensor = out[0] if isinstance(out, tuple) else out
        return output

    return attend


def _adapt_torch_varlen(function: Callable[..., Tensor]) -> Attend:
    # Releases without `enable_gqa` do not compare head counts and hand q, k, v to the
    # same kernel, which groups heads.
    grouped = (
        {"enable_gqa": True}
        if "enable_gqa" in inspect.signature(function).parameters
        else {}
    )

    def attend(
        q_qhd: Tensor,
        k_kgd: Tensor,
        v_kgd: Tensor,
        spec: VarlenSpec,
        softmax_scale: float,
    ) -> Tensor:
        options = grouped if q_qhd.shape[1] != k_kgd.shape[1] else {}
        return function(
            q_qhd,
            k_kgd,
            v_kgd,
            spec.cu_seqlens_q,
            spec.cu_seqlens_k,
            spec.max_seqlen_q,
            spec.max_seqlen_k,
            scale=softmax_scale,
            window_size=(-1, 0),  # causal
            **options,
        )

    return attend


def _adapt_reference(function: Callable[..., Tensor]) -> Attend:
    def attend(
        q_qhd: Tensor,
        k_kgd: Tensor,
        v_kgd: Tensor,
        spec: VarlenSpec,
        softmax_scale: float,
    ) -> Tensor:
        return function(q_qhd, k_kgd, v_kgd, spec.tiles, softmax_scale)

    return attend


_KERNELS = {
    source.name: source
    for source in (
        _Source("flash4", "flash_attn.cute", "flash_attn_varlen_func",
                "install flash-attn-4[cu13] (Hopper and Blackwell; docs/gpu.md) or name "
                "another kernel", _adapt_flash),
        _Source("flash3", "flash_attn_interface", "flash_attn_varlen_func",
                "build the hopper/ folder of flash-attention, or name another "
                "kernel", _adapt_flash),
        _Source("flash2", "flash_attn", "flash_attn_varlen_func",
                "install flash-attn>=2.1, or name another kernel", _adapt_flash),
        _Source("torch_varlen", "torch.nn.attention.varlen", "varlen_attn",
                "install torch>=2.11, or name another kernel", _adapt_torch_varlen),
        _Source("reference", blocked_attention.__module__, blocked_attention.__name__,
                "it is part of this package", _adapt_reference, needs_cuda=False),
    )
}  # fmt: skip
