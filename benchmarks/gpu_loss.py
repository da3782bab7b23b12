"""Chunked loss against materialised logits on one GPU: time and peak memory, forward and
backward, bf16.

    python benchmarks/gpu_loss.py [--tokens 8192 20480] > loss.md

ALIA-40b's head: hidden 8,192; 64,000 words are a shard at TP=4, 256,000 the whole. The
other way is what Megatron-Core
does without fusion: bf16 logits, then its vocabulary-parallel cross entropy in fp32.
One run measures both; peaks are above the inputs, by the allocator's own count. "out of
memory" is a result too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

from alia_ctx.nn.linear_cross_entropy import vocab_parallel_loss
from benchmarks.gpu_program import Parser, at_least

HIDDEN = 8192
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def chunked(chunk_tokens: int) -> Run:
    def run(
        hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        return vocab_parallel_loss(
            hidden,
            weight,
            targets,
            tp_group=dist.group.WORLD,
            vocab_size=weight.shape[0],
            sequence_parallel=False,
            chunk_tokens=chunk_tokens,
        )[0]

    return run


def materialised(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    logits = torch.nn.functional.linear(hidden, weight)
    return vocab_parallel_cross_entropy(logits, targets[:, None]).sum()


def measure(
    run: Run, tokens: int, words: int, repeats: int
) -> tuple[float, float, float]:
    """Median seconds, peak GiB above the inputs, and the loss."""
    torch.manual_seed(0)
    hidden = (
        torch.randn(tokens, 1, HIDDEN, device="cuda", dtype=torch.bfloat16)
        .mul_(HIDDEN**-0.5)
        .requires_grad_()
    )
    weight = torch.randn(
        words, HIDDEN, device="cuda", dtype=torch.bfloat16
    ).requires_grad_()
    targets = torch.randint(0, words, (tokens,), device="cuda")
    held, times = torch.cuda.memory_allocated(), []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats + 2):
        hidden.grad = weight.grad = None
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        loss = run(hidden, weight, targets)
        loss.backward()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return (
        statistics.median(times[2:]),
        (torch.cuda.max_memory_allocated() - held) / 2**30,
        float(loss.detach()),
    )


def main() -> None:
    parser = Parser()
    number = at_least(1)
    parser.add_argument("--tokens", nargs="+", type=number, default=[8192, 20_480])
    parser.add_argument("--words", nargs="+", type=number, default=[64_000, 256_000])
    parser.add_argument("--repeats", type=number, default=5)
    options = parser.parse_args()
    parser.require_gpus()
    start_group()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n"
    )
    print(
        "| tokens | words | way | seconds | of materialised | peak GiB | of "
        "materialised | TFLOP/s | loss |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    ways = {
        "materialised": materialised,
        **{f"chunked {n}": chunked(n) for n in (1024, 2048, 4096)},
    }
    for tokens in options.tokens:
        for words in options.words:
            report(ways, tokens, words, options.repeats)
    dist.destroy_process_group()


def start_group() -> None:
    from megatron.core import parallel_state

    store = Path(tempfile.mkdtemp()) / "store"
    torch.cuda.set_device(0)
    dist.init_process_group(
        "nccl",
        init_method=store.as_uri(),
        rank=0,
        world_size=1,
        device_id=torch.device("cuda", 0),
    )
    parallel_state.initialize_model_parallel()


def report(ways: dict[str, Run], tokens: int, words: int, repeats: int) -> None:
    base: tuple[float, float, float] | None = None
    for name, run in ways.items():
        try:
            measured = measure(run, tokens, words, repeats)
        except torch.cuda.OutOfMemoryError:
            print(f"| {tokens} | {words} | {name} | out of memory | | | | | |")
            torch.cuda.empty_cache()
            continue
        base = measured if name == "materialised" else base
        ratios = (
            [f"{m / b:.2f}" for m, b in zip(measured[:2], base[:2], strict=True)]
            if base
            else ["", ""]
        )
        rate = 6 * tokens * words * HIDDEN / measured[0] / 1e12
        print(
            f"| {tokens} | {words} | {name} | {measured[0]:.4f} | {ratios[0]} "
            f"| {measured[1]:.2f} | {ratios[1]} | "
            f"{rate:.0f} | {measured[2]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
