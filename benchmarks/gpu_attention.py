"""Attention kernels on one GPU: TFLOP/s forward and backward, and packed rows against
their masked FLOPs.

    python benchmarks/gpu_attention.py [--kernels flash4 torch_varlen] [--lengths 32768
    163840] [--heads 64 8]

All in one run: every importable kernel, and torch's scaled_dot_product_attention
(FlashAttention and cuDNN backends, whichever accept the shape) on the same
single-document shapes. ALIA-40b's heads of 128 in bf16: 16 query and 2 key/value heads,
as at TP=4, unless `--heads` says otherwise (64 8 is the whole model). FLOPs are those
that the causal mask lets through, 4 forward and 10 backward a pair, head and dimension
(the backward recomputes the scores: 5 products against 2); the useful count of
`model.py` leaves that recomputation out. Packed rows are compared by time per masked
FLOP: 1.00 is exactly proportional.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from alia_ctx.errors import LayoutError
from alia_ctx.nn.attention_kernels import (
    Kernel,
    VarlenSpec,
    resolve_kernel,
    varlen_attention,
)

DIM = 128
KERNELS = ("flash4", "flash3", "flash2", "torch_varlen")


def seconds(step: Callable[[], None], repeats: int) -> float:
    """Median time of `step` after two warm-ups, by CUDA events."""
    step(), step()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times)


@dataclass(frozen=True)
class Bench:
    """Which heads, and how many timed repeats."""

    heads: int
    groups: int
    repeats: int

    def inputs(self, length: int) -> list[torch.Tensor]:
        """Query, key, value and the output's gradient."""
        heads = (self.heads, self.groups, self.groups, self.heads)
        return [
            torch.randn(
                length, n, DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True
            )
            for n in heads
        ]

    def masked_flops(self, offsets: np.ndarray, per_pair: int) -> float:
        lengths = np.diff(offsets).astype(float)
        return per_pair * self.heads * DIM * float((lengths * (lengths + 1) / 2).sum())


def time_both(
    forward: Callable[[], torch.Tensor],
    gradient: torch.Tensor,
    leaves: list[torch.Tensor],
    repeats: int,
) -> tuple[float, float]:
    """(forward, forward + backward) seconds."""

    def only_forward() -> None:
        with torch.no_grad():
            forward()

    def both() -> None:
        torch.autograd.grad(forward(), leaves, gradient)

    return seconds(only_forward, repeats), seconds(both, repeats)


def time_kernel(
    kernel: Kernel, offsets: np.ndarray, bench: Bench
) -> tuple[float, float]:
    q, k, v, gradient = bench.inputs(int(offsets[-1]))
    spec = VarlenSpec.build(offsets, offsets, "cuda")
    return time_both(
        lambda: varlen_attention(q, k, v, spec, kernel, DIM**-0.5),
        gradient.detach(),
        [q, k, v],
        bench.repeats,
    )


def time_sdpa(backend: SDPBackend, length: int, bench: Bench) -> tuple[float, float]:
    q, k, v, gradient = (
        x.detach().transpose(0, 1)[None].requires_grad_() for x in bench.inputs(length)
    )

    def forward() -> torch.Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True
            )

    return time_both(forward, gradient.detach(), [q, k, v], bench.repeats)


def rows(length: int) -> dict[str, np.ndarray]:
    """Packings to compare with one document:

    halves, a long one among short ones, web-like, and all of 2,048.
    """
    generator = np.random.default_rng(0)
    web = np.cumsum(1 + generator.lognormal(np.log(800), 1.18, length).astype(int))
    mixed = np.concatenate([[length // 2], length // 2 + web])
    return {
        "two halves": np.array([0, length // 2, length]),
        "half long, half web": np.concatenate([[0], mixed[mixed < length], [length]]),
        "web": np.concatenate([[0], web[web < length], [length]]),
        "2,048 each": np.arange(0, length + 1, 2048),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernels", nargs="*", default=KERNELS)
    parser.add_argument("--lengths", nargs="*", type=int, default=[32_768, 163_840])
    parser.add_argument(
        "--heads", nargs=2, type=int, default=[16, 2], help="query and key/value heads"
    )
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    bench = Bench(*options.heads, options.repeats)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}; "
        f"{bench.heads} query and {bench.groups} key/value heads\n"
    )
    kernels = []
    for name in options.kernels:
        try:
            kernels.append(resolve_kernel(name, "cuda"))
        except LayoutError as error:
            print(f"left out: {error}\n")
    for length in options.lengths:
        report_one_document(length, kernels, bench)
        report_packed(length, kernels, bench)


def report_one_document(length: int, kernels: list[Kernel], bench: Bench) -> None:
    print(f"## One document of {length:,} tokens\n")
    print("| kernel | forward TFLOP/s | forward + backward TFLOP/s | of the best |")
    print("|---|---|---|---|")
    offsets = np.array([0, length])
    times = {kernel.name: time_kernel(kernel, offsets, bench) for kernel in kernels}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            times[f"sdpa {backend.name.lower()}"] = time_sdpa(backend, length, bench)
        except RuntimeError as error:
            print(
                f"| sdpa {backend.name.lower()} | refused: {str(error).splitlines()[0]} | | |"
            )
    best = min(both for _, both in times.values())
    for name, (forward, both) in times.items():
        rates = (
            bench.masked_flops(offsets, 4) / forward / 1e12,
            bench.masked_flops(offsets, 14) / both / 1e12,
        )
        print(f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} | {best / both:.2f} |")
    print(flush=True)


def report_packed(length: int, kernels: list[Kernel], bench: Bench) -> None:
    print(
        f"## Packed rows of {length:,} tokens: time per masked FLOP over that of one document\n"
    )
    print(
        "| kernel | row | documents | forward | forward + backward |\n|---|---|---|---|---|"
    )
    for kernel in kernels:
        whole = np.array([0, length])
        base = [
            t / bench.masked_flops(whole, 1) for t in time_kernel(kernel, whole, bench)
        ]
        for name, offsets in rows(length).items():
            packed = [
                t / bench.masked_flops(offsets, 1)
                for t in time_kernel(kernel, offsets, bench)
            ]
            ratios = " | ".join(
                f"{p / b:.2f}" for p, b in zip(packed, base, strict=True)
            )
            print(f"| {kernel.name} | {name} | {len(offsets) - 1} | {ratios} |")
    print(flush=True)


if __name__ == "__main__":
    main()
