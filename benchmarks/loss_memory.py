"""Peak memory and time of the chunked loss against Megatron-Core's own on materialised
logits, in one run.

    python benchmarks/loss_memory.py [--repeats 3] [--threads 1] > docs/benchmarks/loss-memory.md

Both do forward and backward of head and cross entropy for one tensor-parallel shard,
fp32 on CPU, from the same inputs. Time is the process's CPU time: what waiting for busy
neighbours adds is not in it. Each measurement is a fresh process; the two alternate, so
that both see the same neighbours on the machine. Memory is what the process's
peak rises above its peak before the loss, inputs being resident: logits, scratch, and
the gradients of hidden states and weight, which both return.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = (
    (8192, 64_000, 512),
    (16_384, 64_000, 256),
    (8192, 128_000, 256),
)  # tokens, words of the shard, hidden size
WAYS = ("materialised", "chunked 256", "chunked 1024")


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(
    way: str, tokens: int, words: int, hidden_size: int, threads: int
) -> dict[str, float]:
    """Runs in a process of its own."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    hidden = (
        torch.randn(tokens, 1, hidden_size).mul_(hidden_size**-0.5).requires_grad_()
    )
    weight = torch.randn(words, hidden_size).requires_grad_()
    targets = torch.randint(0, words, (tokens,))
    run = chunked(int(way.split()[1])) if way.startswith("chunked") else materialised()
    before, start = peak_mib(), time.process_time()
    loss = run(hidden, weight, targets)
    loss.backward()
    seconds = time.process_time() - start
    checks = {
        "loss": float(loss.detach()),
        "norm": float(weight.grad.norm() + hidden.grad.norm()),
    }
    return {"mib": peak_mib() - before, "seconds": seconds, **checks}


def chunked(chunk_tokens: int) -> Any:
    import torch.distributed as dist

    from alia_ctx.nn.linear_cross_entropy import vocab_parallel_loss

    group = one_rank_group(dist)

    def run(hidden: Any, weight: Any, targets: Any) -> Any:
        return vocab_parallel_loss(
            hidden,
            weight,
            targets,
            tp_group=group,
            vocab_size=weight.shape[0],
            sequence_parallel=False,
            chunk_tokens=chunk_tokens,
        )[0]

    return run


def materialised() -> Any:
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

    one_rank_group(dist)
    parallel_state.initialize_model_parallel()

    def run(hidden: Any, weight: Any, targets: Any) -> Any:
        logits = torch.nn.functional.linear(hidden, weight)
        return vocab_parallel_cross_entropy(logits, targets[:, None]).sum()

    return run


def one_rank_group(dist: Any) -> Any:
    store = Path(tempfile.mkdtemp()) / "store"
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=0, world_size=1)
    return dist.group.WORLD


def measure_apart(
    way: str, shape: tuple[int, int, int], threads: int
) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--one",
        way,
        *map(str, shape),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=4)
    options = parser.parse_args()
    if options.one:
        way, tokens, words, hidden = options.one
        sizes = int(tokens), int(words), int(hidden)
        print(json.dumps(measure(way, *sizes, options.threads)))
        return
    import torch

    print("# Chunked loss against materialised logits\n")
    print(
        "Made by `python benchmarks/loss_memory.py` on 2 cores of an x86-64 server, 24 GiB, torch "
        f"{torch.__version__.split('+')[0]}, {options.threads} thread(s), fp32.\n"
    )
    print((__doc__ or "").split("\n\n", 2)[2].strip())
    print(f"\nMedians of {options.repeats} runs; ratios to materialised.\n")
    print(
        "| tokens | words | hidden | way | peak MiB | of materialised | CPU seconds | "
        "of materialised |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way in WAYS:
                runs[way].append(measure_apart(way, shape, options.threads))
        check_same(runs)
        base = runs["materialised"]
        for way in WAYS:
            mib, seconds = (
                statistics.median(r[key] for r in runs[way])
                for key in ("mib", "seconds")
            )
            share = mib / statistics.median(r["mib"] for r in base)
            pace = statistics.median(
                r["seconds"] / b["seconds"]
                for r, b in zip(runs[way], base, strict=True)
            )
            cells = [
                *map(str, shape),
                way,
                f"{mib:.0f}",
                f"{share:.3f}",
                f"{seconds:.2f}",
                f"{pace:.2f}",
            ]
            print("|", " | ".join(cells), "|")
        sys.stdout.flush()


def check_same(runs: dict[str, list[dict[str, float]]]) -> None:
    """A benchmark of two things that compute differently would mean nothing."""
    for key in ("loss", "norm"):
        values = [run[key] for each in runs.values() for run in each]
        # A NaN is near nothing.
        if not all(abs(v - values[0]) <= 1e-4 * abs(values[0]) for v in values):
            raise SystemExit(f"the ways disagree about the {key}: {values}")


if __name__ == "__main__":
    main()
