"""Training steps of a stack of ALIA's layers on one GPU: tokens/s, causal MFU, peak memory
by item, and a profile.

    python benchmarks/gpu_step.py --case 5:32768:none --case 4:163840:full [--profile] > step.md

    python benchmarks/gpu_step.py --model smollm2 --vocabulary 49152 --case 30:32768:none
    python benchmarks/gpu_step.py --layers local te --fp8 off current blockwise \
        --one-process --case 2:32768:none --case 1:163840:none
    python benchmarks/gpu_step.py --offload off on --one-process --case 4:163840:full
    python benchmarks/gpu_step.py --model DIRECTORY --layers local te --fp8 off current \
        --case 8:65536:none

A case is layers:context:recompute[:row], the row `one` document (default) or `web`:
half of it one document, the rest of lengths like filtered web text. With several
`--layers`, `--fp8`, `--offload` and `--mlp-chunk` each case runs with each that go together,
the first of them measured once more at its end; `of the first` is a row's time over the
first's, and the last row's says how far the card itself moved. Chunks of the MLP are of
`--layers local`. In FP8 all layers of the
stack are: none keeps bf16 (`engine.fp8_bf16_layers=0`). Each run is in a process of its
own, or with `--one-process` all in this one, through the product's engine in bf16 with
fp32 gradients and optimizer state; one row an update, random tokens. The vocabulary is
cut from 256,000 to 8,192, or embedding and head would take the room of five layers; with
`--vocabulary 256000` they do. `--model` takes a Hugging Face directory as well, of whose
config.json the sizes are; its vocabulary is whole unless one is named. The optimizer's step
is timed apart: under data parallelism each rank steps its share only. With
`--gradients-alone` there is neither step nor state: a rank holds 6 bytes a parameter for 18,
as where many share the rest.

Causal MFU: FLOPs of all products with weights (head included) and of the attention that
the causal mask and the documents let through, forward and backward, over compute time,
over the rate of an 8192^3 bf16 product of random
numbers in the same process: the better of one measurement right before the steps and
one right after. Recomputation is not counted as useful work. A case that did not run is
said, and the program ends with status 1.

Weights are drawn on the GPU here: the engine's own draw is on the host, the same on
every machine, and slow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.model import is_norm
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.execution import Recompute
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from benchmarks import gpu_program
from benchmarks.figures import first_odd
from benchmarks.gpu_observed import (
    Memory,
    Told,
    leave_out_the_optimizer,
    peaks_of_a_step,
    print_profile,
)
from benchmarks.gpu_products import LOCAL, Products
from benchmarks.gpu_program import Parser, at_least, choices, parsed
from benchmarks.kernel_time import matrix_rate
from benchmarks.releases import ENGINE, releases
from benchmarks.stacks import model_name, stack_of

ROWS = ("one", "web")
REFUSAL = "refused: "  # what begins the last line of a run that says why it cannot be
ROPE = RopeSpec("llama3", 1e4, 40.0, 4096, low_freq_factor=1.0, high_freq_factor=4.0)


@dataclass(frozen=True)
class Case:
    layers: int
    context: int
    recompute: str
    row: str = "one"

    @classmethod
    def parse(cls, text: str) -> Case:
        """ValueError where the text is no case."""
        fields = text.split(":")
        if len(fields) not in (3, 4):
            raise ValueError("a case is layers:context:recompute[:row]")
        layers, context, recompute, *row = fields
        if min(int(layers), int(context)) < 1:
            raise ValueError("layers and context are 1 or more")
        if recompute not in get_args(Recompute):
            raise ValueError(
                f"recomputation is one of {', '.join(get_args(Recompute))}"
            )
        if not set(row) <= set(ROWS):
            raise ValueError(f"a row is one of {', '.join(ROWS)}")
        return cls(int(layers), int(context), recompute, *row)

    def __str__(self) -> str:
        return f"{self.layers}:{self.context}:{self.recompute}:{self.row}"


def make_row(case: Case, vocabulary: int) -> PackedRow:
    generator = np.random.default_rng(0)
    lengths = [case.context] if case.row == "one" else [case.context // 2]
    while (left := case.context - sum(lengths)) > 0:
        lengths.append(min(left, 1 + int(generator.lognormal(np.log(800), 1.18))))
    return PackedRow.from_documents(
        [generator.integers(0, vocabulary, n) for n in lengths], case.context
    )


def draw_on_device(module: torch.nn.Module, model: ModelSpec, *_: Any) -> None:
    for name, parameter in module.named_parameters():
        if is_norm(name):
            parameter.data.fill_(1.0)
        else:
            # By name, so that layers of either kind start from the same weights.
            generator = torch.Generator(parameter.device)
            generator.manual_seed(zlib.crc32(name.encode()))
            parameter.data.normal_(0.0, model.initializer_range, generator=generator)


def measure(
    case: Case,
    vocabulary: int | None,
    repeats: int,
    attention: str,
    profile: bool,
    stack: str = "alia",
    products: Products = LOCAL,
) -> dict[str, Any]:
    settings = EngineConfig(
        attention=attention,
        layers=products.layers,
        fp8=products.fp8,
        fp8_bf16_layers=0,
        offload_activations=products.offload == "on",
        mlp_chunk_tokens=products.mlp_chunk or None,
    )
    told = Told()
    with Distributed(settings):
        rates = [matrix_rate()]
        torch.cuda.empty_cache()
        model = stack_of(stack)(case.layers, vocabulary)
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
        row, memory = make_row(case, model.vocab_size), Memory(engine)
        words = f"{case} {products}"
        told.say(f"{words}: the engine stands")
        peaks = peaks_of_a_step(engine, row)  # two steps, which warm up
        told.say(f"{words}: two steps to warm up")
        results = []
        for _ in range(repeats):
            results.append(engine.train_update([row], 1e-6))
            told.say(f"{words}: {results[-1].compute_seconds:.2f} s of computing")
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
            "layers": engine.layers.words,
            "fp8": engine.fp8,
            "releases": releases(ENGINE),
            "offload": products.offload,
            "MLP chunk": products.mlp_chunk,
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


def print_tables(results: list[dict[str, Any]]) -> None:
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n"
    )
    print(
        "| layers | context | recompute | documents | kernel | layers by | FP8 | offload "
        "| MLP chunk | s | spread | of the first | tokens/s | TFLOP/s | matrix TFLOP/s "
        "| causal MFU | optimizer s | last loss |\n|" + "---|" * 18
    )
    first: dict[str, float] = {}
    for r in results:
        first.setdefault(r["case"], r["seconds"])
        layers, context, recompute, _ = r["case"].split(":")
        print(
            f"| {layers} | {int(context):,} | {recompute} | {r['documents']} "
            f"| {r['kernel']} | {r['layers']} | {r['fp8']} | {r['offload']} "
            f"| {r['MLP chunk']} | {r['seconds']:.3f} | {r['spread']:.1%} "
            f"| {r['seconds'] / first[r['case']]:.3f} "
            f"| {r['tokens_per_second']:,.0f} | {r['tflops']:.0f} | "
            f"{r['matrix_tflops']:.0f} | {r['mfu']:.1%} "
            f"| {r['optimizer_seconds']:.3f} | {r['losses'][-1]:.4f} |"
        )
    items = list(results[0]["memory"])
    print(
        "\nMemory in GiB:\n\n"
        "| layers | context | recompute | documents | layers by | FP8 | offload | MLP chunk | "
        + " | ".join(items)
        + " |"
    )
    print("|" + "---|" * (8 + len(items)))
    for r in results:
        layers, context, recompute, _ = r["case"].split(":")
        sizes = " | ".join(f"{r['memory'][item]:.1f}" for item in items)
        print(
            f"| {layers} | {int(context):,} | {recompute} | {r['documents']} "
            f"| {r['layers']} | {r['fp8']} | {r['offload']} | {r['MLP chunk']} "
            f"| {sizes} |"
        )


def main() -> None:
    parser = Parser()
    parser.add_argument(
        "--case",
        action="append",
        required=True,
        type=parsed(Case.parse),
        help="layers:context:recompute, with :web a row like web text",
    )
    parser.add_argument("--vocabulary", type=at_least(1))
    parser.add_argument(
        "--model",
        type=parsed(model_name),
        default="alia",
        help="alia, smollm2, or a Hugging Face directory",
    )
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--attention", choices=choices("attention"), default="auto")
    parser.add_argument(
        "--layers", nargs="+", choices=choices("layers"), default=["auto"]
    )
    parser.add_argument("--fp8", nargs="+", choices=choices("fp8"), default=["off"])
    parser.add_argument("--offload", nargs="+", choices=["off", "on"], default=["off"])
    parser.add_argument(
        "--mlp-chunk",
        nargs="+",
        type=at_least(0),
        default=[0],
        help="tokens; 0 is a row",
    )
    parser.add_argument(
        "--gradients-alone",
        action="store_true",
        help="hold neither main weights nor moments, and take no optimizer step",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print the kernels of one more step on stderr",
    )
    parser.add_argument(
        "--one-process", action="store_true", help="start no process for each run"
    )
    parser.add_argument(
        "--in-process", action="store_true", help="run the one case here and print JSON"
    )
    options = parser.parse_args()
    try:
        combinations = Products.of(
            options.layers, options.fp8, options.offload, options.mlp_chunk
        )
    except ValueError as error:
        parser.error(str(error))
    if any(options.mlp_chunk) and any(c.recompute != "full" for c in options.case):
        parser.error("--mlp-chunk does nothing in cases without full recomputation")
    parser.require_gpus()
    if options.gradients_alone:
        leave_out_the_optimizer()
    if options.in_process:
        try:
            result = run_here(options, options.case[0], combinations[0])
        except gpu_program.REFUSALS as error:
            print(REFUSAL + gpu_program.one_line(error))
            sys.exit(1)
        print(json.dumps(result))
        return
    if len(combinations) > 1:
        combinations.append(combinations[0])
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    with contextlib.ExitStack() as entered:
        if options.one_process:  # one process group for all
            entered.enter_context(Distributed(EngineConfig()))
        run = run_here if options.one_process else run_apart
        for case in options.case:
            for products in combinations:
                words = f"{case} {products}"
                try:
                    results.append(run(options, case, products))
                    line = json.dumps(results[-1])
                    print(f"{words}: {line}", file=sys.stderr, flush=True)
                # Each package refuses in its own way.
                except (Exception, SystemExit) as error:
                    print(f"{words}: did not run ({error})", flush=True)
                    failed.append(words)
                # After the error, whose frames hold the engine.
                gpu_program.forget_case()
    if results:
        print_tables(results)
    gpu_program.end(
        failed,
        (
            f"{r['case']} {r['layers']}"
            for r in results
            if first_odd(r["losses"]) is not None
        ),
    )


def run_here(
    options: argparse.Namespace, case: Case, products: Products
) -> dict[str, Any]:
    """Measure in this process."""
    return measure(
        case,
        options.vocabulary,
        options.repeats,
        options.attention,
        options.profile,
        options.model,
        products,
    )


def run_apart(
    options: argparse.Namespace, case: Case, products: Products
) -> dict[str, Any]:
    """Measure in a process of its own."""
    arguments = [
        "--case",
        str(case),
        "--layers",
        products.layers,
        "--fp8",
        products.fp8,
    ]
    arguments += ["--offload", products.offload]
    arguments += ["--mlp-chunk", str(products.mlp_chunk)]
    if options.gradients_alone:
        arguments.append("--gradients-alone")
    for name in ("vocabulary", "model", "repeats", "attention"):
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name}", str(value)]
    if options.profile:
        arguments.append("--profile")
    command = [sys.executable, __file__, *arguments, "--in-process"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    last = done.stdout.rstrip("\n").rpartition("\n")[2]
    if done.returncode:
        words = f"exit status {done.returncode}; see stderr"
        refused = last.startswith(REFUSAL)
        raise RuntimeError(last.removeprefix(REFUSAL) if refused else words)
    result: dict[str, Any] = json.loads(last)
    return result


if __name__ == "__main__":
    main()
