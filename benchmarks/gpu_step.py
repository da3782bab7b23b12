"""Training steps of a stack of ALIA's layers on one GPU: tokens/s, causal MFU, peak memory
by item, and a profile.

    python benchmarks/gpu_step.py --case 5:32768:none --case 4:163840:full [--profile] > step.md

    python benchmarks/gpu_step.py --model smollm2 --vocabulary 49152 --case 30:32768:none

A case is layers:context:recompute[:row], the row `one` document (default) or `web`:
half of it one document, the rest of lengths like filtered web text. Each case runs in a
process of its own, through the product's engine in bf16 with fp32 gradients and
optimizer state; one row an update, random tokens. The vocabulary is cut from 256,000 to
8,192, or embedding and head would take the room of five layers; with `--vocabulary
256000` they do. The optimizer's step is
timed apart: under data parallelism each rank steps its share only.

Causal MFU: FLOPs of all products with weights (head included) and of the attention that
the causal mask and the documents let through, forward and backward, over compute time,
over the rate of an 8192^3 bf16 product of random
numbers in the same process: the better of one measurement right before the steps and
one right after. Recomputation is not counted as useful work.

Weights are drawn on the GPU here: the engine's own draw is on the host, the same on
every machine, and slow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

GIB = 2**30
ROPE = RopeSpec("llama3", 1e4, 40.0, 4096, low_freq_factor=1.0, high_freq_factor=4.0)


@dataclass(frozen=True)
class Case:
    layers: int
    context: int
    recompute: str
    row: str = "one"

    @classmethod
    def parse(cls, text: str) -> Case:
        layers, context, *rest = text.split(":")
        return cls(int(layers), int(context), *rest)

    def __str__(self) -> str:
        return f"{self.layers}:{self.context}:{self.recompute}:{self.row}"


def alia_stack(layers: int, vocabulary: int) -> ModelSpec:
    return ModelSpec(
        num_hidden_layers=layers,
        hidden_size=8192,
        intermediate_size=24_576,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=vocabulary,
    )


def smollm2(layers: int, vocabulary: int) -> ModelSpec:
    """SmolLM2-135M's sizes; all of it has 30 layers and a vocabulary of 49,152."""
    return ModelSpec(
        num_hidden_layers=layers,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )


STACKS = {"alia": alia_stack, "smollm2": smollm2}


def make_row(case: Case, vocabulary: int) -> PackedRow:
    generator = np.random.default_rng(0)
    lengths = [case.context] if case.row == "one" else [case.context // 2]
    while (left := case.context - sum(lengths)) > 0:
        lengths.append(min(left, 1 + int(generator.lognormal(np.log(800), 1.18))))
    return PackedRow.from_documents(
        [generator.integers(0, vocabulary, n) for n in lengths], case.context
    )


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


def draw_on_device(module: torch.nn.Module, model: ModelSpec, *_: Any) -> None:
    for name, parameter in module.named_parameters():
        if not name.endswith("layernorm.weight"):
            torch.nn.init.normal_(parameter.data, 0.0, model.initializer_range)


class Memory:
    """What the allocator holds at the points of a step that tell its items apart, in GiB."""

    def __init__(self, engine: MegatronEngine) -> None:
        self.at_loss = 0
        engine.module.decoder.final_layernorm.register_forward_hook(self._before_loss)

    def _before_loss(self, *_: Any) -> None:
        self.at_loss = torch.cuda.memory_allocated()

    def report(
        self, engine: MegatronEngine, peaks: tuple[int, int]
    ) -> dict[str, float]:
        parameters = sum(p.numel() for p in engine.parameters())
        state = (
            18 * parameters
        )  # bf16 weight, fp32 gradient, fp32 master weight and two moments
        items = {
            "weights, gradients, optimizer": state,
            "saved by the forward": self.at_loss - state,
            "more at the step's peak": peaks[0] - self.at_loss,
        }
        return {name: size / GIB for name, size in items.items()} | {
            "peak of compute": peaks[0] / GIB,
            "peak of the optimizer": peaks[1] / GIB,
            "reserved": torch.cuda.max_memory_reserved() / GIB,
        }


def measure(
    case: Case,
    vocabulary: int,
    repeats: int,
    attention: str,
    profile: bool,
    stack: str = "alia",
) -> dict[str, Any]:
    settings = EngineConfig(attention=attention)
    with Distributed(settings):
        rates = [matrix_rate()]
        torch.cuda.empty_cache()
        model = STACKS[stack](case.layers, vocabulary)
        engine = MegatronEngine(
            model,
            ROPE,
            case.context,
            Layout(),
            settings,
            OptimizerConfig(),
            recompute=case.recompute,
            initializer=draw_on_device,
        )
        row, memory = make_row(case, vocabulary), Memory(engine)
        peaks = peaks_of_a_step(engine, row)  # two steps, which warm up
        results = [engine.train_update([row], 1e-6) for _ in range(repeats)]
        rates.append(matrix_rate())
        flops = model.linear_flops_per_token() * case.context + model.attention_flops(
            np.diff(row.doc_offsets).tolist()
        )
        compute = statistics.median(r.compute_seconds for r in results)
        if profile:
            print_profile(engine, row)
        return {
            "case": str(case),
            "documents": len(row.doc_ids),
            "kernel": engine.kernel,
            "seconds": compute,
            "optimizer_seconds": statistics.median(r.step_seconds for r in results),
            "spread": (
                max(r.compute_seconds for r in results)
                - min(r.compute_seconds for r in results)
            )
            / compute,
            "tokens_per_second": case.context / compute,
            "tflops": flops / compute / 1e12,
            "matrix_tflops": max(rates),
            "mfu": flops / compute / 1e12 / max(rates),
            "memory": memory.report(engine, peaks),
            "losses": [r.loss for r in results],
        }


def peaks_of_a_step(engine: MegatronEngine, row: PackedRow) -> tuple[int, int]:
    """Peak bytes allocated up to the gradients, and in the optimizer's step.

    Takes two steps; the first compiles.
    """
    assert engine.optimizer is not None
    engine.train_update([row], 1e-6)
    torch.cuda.reset_peak_memory_stats()
    loss, _ = engine.reduce_losses(engine.accumulate_gradients([row]))
    compute = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine.optimizer.step_if_finite(loss, 1e-6)
    return compute, torch.cuda.max_memory_allocated()


def print_profile(engine: MegatronEngine, row: PackedRow) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        engine.train_update([row], 1e-6)
        torch.cuda.synchronize()
    events = [
        e
        for e in profiler.key_averages()
        if e.device_type == torch.autograd.DeviceType.CUDA
    ]
    kernels = [
        e for e in events if e.self_device_time_total and "#" not in e.key
    ]  # "Optimizer.step#" spans kernels
    total = sum(e.self_device_time_total for e in kernels)
    print("| kernel | calls | ms | share |\n|---|---|---|---|", file=sys.stderr)
    for event in sorted(kernels, key=lambda e: -e.self_device_time_total)[:25]:
        time = event.self_device_time_total
        print(
            f"| {event.key[:110]} | {event.count} | {time / 1e3:.2f} | {time / total:.3f} |",
            file=sys.stderr,
        )


def print_tables(results: list[dict[str, Any]]) -> None:
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n"
    )
    print(
        "| layers | context | recompute | documents | kernel | s | tokens/s "
        "| TFLOP/s | matrix TFLOP/s | causal MFU "
        "| optimizer s |\n|" + "---|" * 11
    )
    for r in results:
        layers, context, recompute, _ = r["case"].split(":")
        print(
            f"| {layers} | {int(context):,} | {recompute} | {r['documents']} "
            f"| {r['kernel']} | {r['seconds']:.3f} "
            f"| {r['tokens_per_second']:,.0f} | {r['tflops']:.0f} | "
            f"{r['matrix_tflops']:.0f} | {r['mfu']:.1%} "
            f"| {r['optimizer_seconds']:.3f} |"
        )
    items = list(results[0]["memory"])
    print(
        "\nMemory in GiB:\n\n| layers | context | recompute | documents | "
        + " | ".join(items)
        + " |"
    )
    print("|" + "---|" * (4 + len(items)))
    for r in results:
        layers, context, recompute, _ = r["case"].split(":")
        sizes = " | ".join(f"{r['memory'][item]:.1f}" for item in items)
        print(
            f"| {layers} | {int(context):,} | {recompute} | {r['documents']} | {sizes} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append", required=True)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--model", choices=STACKS, default="alia")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--attention", default="auto")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print the kernels of one more step on stderr",
    )
    parser.add_argument(
        "--in-process", action="store_true", help="run the one case here and print JSON"
    )
    options = parser.parse_args()
    if options.in_process:
        case = Case.parse(options.case[0])
        result = measure(
            case,
            options.vocabulary,
            options.repeats,
            options.attention,
            options.profile,
            options.model,
        )
        print(json.dumps(result))
        return
    results = []
    for case in options.case:
        arguments = [
            a
            for a in sys.argv[1:]
            if not a.startswith("--case") and a not in options.case
        ]
        command = [sys.executable, __file__, *arguments, "--case", case, "--in-process"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(
                f"{case}: did not run (exit status {done.returncode}; see stderr)",
                flush=True,
            )
            continue
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{case}: {json.dumps(results[-1])}", file=sys.stderr, flush=True)
    if results:
        print_tables(results)


if __name__ == "__main__":
    main()
