"""Where the GPU's time of a step goes, by class of kernel: torch.profiler's kernels, told
apart by their names. And the rate of one product, which a step is held against.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

import torch

# The first class whose word is in a kernel's name; names of torch 2.11, cuBLAS and cuDNN of
# CUDA 13, FlashAttention 2 to 4, Triton's of Liger, TransformerEngine 2.12, NCCL.
CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("communication", ("nccl",)),
    ("attention", ("flash", "fmha", "sdpa", "attention", "attn")),
    ("norm", ("norm",)),
    ("loss", ("cross_entropy", "softmax", "nll", "logsumexp")),
    ("scaling to FP8", ("quantize", "cast_transpose", "amax", "block_scaled", "cast_")),
    ("products", ("gemm", "nvjet", "cutlass", "xmma", "splitk", "cublas", "matmul")),
    (
        "elementwise and copies",
        (
            *("elementwise", "memcpy", "memset", "copy", "fill", "cat", "transpose"),
            *("silu", "swiglu", "geglu", "act", "rope", "rotary", "embedding"),
            *("index", "gather", "scatter", "triton", "reduce", "multi_tensor"),
        ),
    ),
)
OTHER, IDLE = "other", "idle"
NAMES = (*(name for name, _ in CLASSES), OTHER, IDLE)


def class_of(kernel: str) -> str:
    """The class of a kernel by its name."""
    lower = kernel.lower()
    for name, words in CLASSES:
        if any(word in lower for word in words):
            return name
    return OTHER


def by_class(
    kernels: Iterable[tuple[str, float, float]], whole: float
) -> dict[str, float]:
    """Milliseconds of each class, from (name, start, end) in microseconds, and what of the
    `whole` step, in milliseconds, no kernel runs in. Kernels side by side count each.
    """
    times = dict.fromkeys(NAMES, 0.0)
    busy, until = 0.0, float("-inf")
    for name, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        times[class_of(name)] += (end - start) / 1e3
        busy += max(0.0, end - max(start, until)) / 1e3
        until = max(until, end)
    times[IDLE] = max(0.0, whole - busy)
    return times


def kernels_of(step: Callable[[], object]) -> list[tuple[str, float, float]]:
    """The kernels of a step: (name, start, end) in microseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return [
        (e.name, e.time_range.start, e.time_range.end)
        for e in profiler.events()
        # "Optimizer.step#" spans kernels
        if e.device_type == torch.profiler.DeviceType.CUDA and "#" not in e.name
    ]


def longest(
    kernels: Iterable[tuple[str, float, float]],
) -> list[tuple[str, int, float]]:
    """(name, calls, milliseconds) of kernels of a name, the longest sum first."""
    sums: dict[str, tuple[int, float]] = {}
    for name, start, end in kernels:
        calls, total = sums.get(name, (0, 0.0))
        sums[name] = calls + 1, total + (end - start) / 1e3
    every = [(name, calls, total) for name, (calls, total) in sums.items()]
    return sorted(every, key=lambda kernel: -kernel[2])


def profile_step(
    step: Callable[[], object],
) -> tuple[dict[str, float], list[list[object]]]:
    """A step's milliseconds by class, and its 12 longest kernels as (name, calls, ms). The
    whole is the time between the first kernel's start and the last one's end.
    """
    kernels = kernels_of(step)
    if not kernels:
        return dict.fromkeys(NAMES, 0.0), []
    whole = (max(k[2] for k in kernels) - min(k[1] for k in kernels)) / 1e3
    most = longest(kernels)[:12]
    return by_class(kernels, whole), [[name[:110], *sums] for name, *sums in most]


def matrix_rate(size: int = 8192, repeats: int = 110) -> float:
    """TFLOP/s of a bf16 product of random square matrices:

    median of single products after a warm-up.
    """
    a, b = (
        torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return 2 * size**3 / statistics.median(times[10:]) / 1e12
