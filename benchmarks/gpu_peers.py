"""A training step of ALIA-shaped layers beside the same step of other programs, in one run.

    python benchmarks/gpu_peers.py --layers 2 --context 32768 > table
    python benchmarks/gpu_peers.py --layers 2 --context 32768 --row web --peers ours liger_flash4
    torchrun --nproc-per-node 2 benchmarks/gpu_peers.py --in-process liger --layers 2 ...

Peers, each in a process of its own, one after another, `--rounds` times over:

- `ours`: the product's engine, as `gpu_step.py` has it: bf16, gradients added up in fp32.
- `transformers`: `LlamaForCausalLM` as it comes, torch's attention (cuDNN's kernel first),
  gradients in bf16.
- `liger`: the same with Liger's kernels (RMS norm, RoPE, SwiGLU, fused loss).
- `liger_fp32`: that, with gradients added up in fp32 as each is made, as ours are.
- `liger_flash4`: `liger_fp32` with the attention kernel that ours takes, which knows the
  documents of a packed row; what is left is all but attention.
- `megatron_te`: Megatron-Core's own GPT with TransformerEngine's layers and attention,
  gradients added up in fp32; where TransformerEngine is installed.

Under torchrun the peers on transformers are sharded by FSDP2, a layer a unit, and each
rank has a row of its own. The optimizer's step is no part of any figure. A packed row
(`--row web`) is given only to those that keep its documents apart.

The sizes are the same for all, and it is checked: parameters are counted. Weights are
random, so losses are near ln(vocabulary) and are printed to show that all did the work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from alia_ctx.config.run import EngineConfig
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.model import ModelSpec
from benchmarks.gpu_step import Case, alia_stack, make_row, matrix_rate
from benchmarks.peers import Task, device, make_ready

PEERS = (
    "ours",
    "transformers",
    "liger",
    "liger_fp32",
    "liger_flash4",
    "megatron_te",
)
KNOWS_DOCUMENTS = ("ours", "liger_flash4")
WARM_UP = 2


def measure(peer: str, task: Task) -> dict[str, Any]:
    """Seconds of each step after the warm-up, and what it took."""
    on_gpu = device().type == "cuda"
    with Distributed(EngineConfig()):
        rate = matrix_rate() if on_gpu else 0.0
        step = make_ready(peer, task)
        seconds, losses = [], []
        for number in range(WARM_UP + task.repeats):
            if number == WARM_UP and on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            loss, own = step.run()
            if on_gpu:
                torch.cuda.synchronize()
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - start if own is None else own)
                losses.append(loss)
        peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return {
        "peer": peer,
        "kernel": step.kernel,
        "parameters": step.parameters,
        "seconds": seconds,
        "loss": losses[0],
        "gib": peak,
        "matrix_tflops": rate,
        "flops": task.flops,
    }


def run_apart(peer: str, arguments: list[str]) -> dict[str, Any] | None:
    """Measure a peer in a process of its own; None, with its last line said, where it
    cannot be.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_peers", "--in-process", peer]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{peer}: not measured: {last}", file=sys.stderr, flush=True)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def print_table(results: dict[str, list[dict[str, Any]]], context: int) -> None:
    medians = {
        peer: statistics.median(s for r in rounds for s in r["seconds"])
        for peer, rounds in results.items()
    }
    print(
        "| peer | kernel | s | spread | tokens/s | TFLOP/s | time over ours | GiB | loss |"
    )
    print("|" + "---|" * 9)
    for peer, rounds in results.items():
        middle, first = medians[peer], rounds[0]
        every = [s for r in rounds for s in r["seconds"]]
        ratio = f"{middle / medians['ours']:.3f}" if "ours" in medians else "-"
        print(
            f"| {peer} | {first['kernel']} | {middle:.3f} "
            f"| {(max(every) - min(every)) / middle:.1%} | {context / middle:,.0f} "
            f"| {first['flops'] / middle / 1e12:,.0f} | {ratio} "
            f"| {max(r['gib'] for r in rounds):.1f} | {first['loss']:.3f} |"
        )
    counts = {rounds[0]["parameters"] for rounds in results.values()}
    assert len(counts) == 1, f"the peers have models of different sizes: {counts}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--context", type=int, default=32_768)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--row", choices=("one", "web"), default="one")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--in-process", choices=PEERS)
    parser.add_argument(
        "--width",
        type=int,
        help="a small stack of this hidden size, to try it anywhere",
    )
    options = parser.parse_args()
    model = alia_stack(options.layers, options.vocabulary)
    if options.width:
        model = ModelSpec(
            num_hidden_layers=options.layers,
            hidden_size=options.width,
            intermediate_size=3 * options.width,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=options.width // 8,
            vocab_size=options.vocabulary,
        )
    if options.in_process:
        case = Case(options.layers, options.context, "none", options.row)
        row = make_row(case, options.vocabulary)
        task = Task(model, row, options.context, options.repeats)
        result = measure(options.in_process, task)
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(result))
        return
    chosen = [p for p in options.peers if options.row == "one" or p in KNOWS_DOCUMENTS]
    arguments = [
        *("--layers", str(options.layers), "--context", str(options.context)),
        *("--vocabulary", str(options.vocabulary), "--row", options.row),
        *("--repeats", str(options.repeats)),
        *(("--width", str(options.width)) if options.width else ()),
    ]
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for peer in chosen:
            result = run_apart(peer, arguments)
            if result is not None:
                results.setdefault(peer, []).append(result)
    if not results:
        sys.exit("no peer was measured")
    print_table(results, options.context)


if __name__ == "__main__":
    main()
