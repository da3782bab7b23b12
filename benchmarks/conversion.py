"""Time and memory of import, export and verify against `cp`, side by side on one synthetic model.

    python benchmarks/conversion.py --work DIR [--model alia|small] [--layers 24] [--rounds 2]

`alia` has ALIA-40b's proportions cut down: 24 layers of hidden size 3,072 and the whole
vocabulary of 256,000, 8.2 GB in bf16. `small` has the sizes of SmolLM2-135M, where
starting Python, torch and transformers is most of the work. `cp` copies the directory
and flushes it to disk, as the conversions do; each round runs all of them, and the
fastest of each counts, since the machine may be busy with other things. Every run is a
process of its own, whose peak resident memory (VmHWM) and processor time, Python and
torch included, are reported; `imports only` is that share of both. DIR needs four times
the model's size. Speeds are bytes of the model over the time of the conversion, start of
Python excluded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from alia_ctx.hf import safetensors_writer
from alia_ctx.hf.config import write_config
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.rules import RowMap, WeightMap
from alia_ctx.hf.verify import verify
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

ALIA_PARAMETERS = 40_433_885_184
ROPE = RopeSpec(
    "llama3", 10000.0, 40.0, 4096, low_freq_factor=1.0, high_freq_factor=4.0
)
POOL = 1 << 24


MODELS = {
    "alia": ModelSpec(
        num_hidden_layers=24,
        hidden_size=3072,
        intermediate_size=9216,
        num_attention_heads=24,
        num_key_value_heads=3,
        head_dim=128,
        vocab_size=256_000,
    ),
    "small": ModelSpec(
        num_hidden_layers=30,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=49_152,
        tie_word_embeddings=True,
    ),
}


def synthesize(directory: Path, model: ModelSpec) -> int:
    """Write a random bf16 model; returns its bytes."""
    pool = (
        torch.randn(2 * POOL, generator=torch.Generator().manual_seed(0))
        .mul_(0.02)
        .to(torch.bfloat16)
    )
    state = [0]

    def rows(name: str, home: RowMap, start: int, out: torch.Tensor) -> None:
        state[0] = (state[0] + 7919) % POOL
        out.view(-1).copy_(
            pool[state[0] : state[0] + POOL].repeat(-(-out.numel() // POOL))[
                : out.numel()
            ]
        )

    directory.mkdir(parents=True)
    plan = safetensors_writer.plan(
        WeightMap(model), lambda home: torch.bfloat16, 5_000_000_000
    )
    safetensors_writer.write_all(plan, directory, rows)
    safetensors_writer.write_index(plan, directory)
    (directory / "config.json").write_text(
        json.dumps(write_config(model, ROPE, 163_840, torch.bfloat16))
    )
    return sum(shard.nbytes for shard in plan)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", *map(str, sorted(target.iterdir()))], check=True)


TASKS = {
    "cp + sync": lambda w: copy(w / "hf", w / "copy"),
    "import-hf": lambda w: import_hf(w / "hf", w / "ck"),
    "export-hf": lambda w: export_hf(w / "ck", w / "out"),
    "export-hf, no checksums": lambda w: export_hf(w / "ck", w / "out", check=False),
    "verify, weights": lambda w: verify(w / "hf", w / "ck", logits=False),
    "imports only": lambda w: None,
}
WRITES = {
    "cp + sync": "copy",
    "import-hf": "ck",
    "export-hf": "out",
    "export-hf, no checksums": "out",
}


def run_task(name: str, work: Path) -> dict[str, float]:
    """Run one task in a process of its own: seconds, and GB of peak resident memory."""
    shutil.rmtree(
        work / WRITES[name] if name in WRITES else work / "none", ignore_errors=True
    )
    subprocess.run(["sync"], check=True)
    command = [sys.executable, __file__, "--work", str(work), "--task", name]
    return json.loads(
        subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.splitlines()[-1]
    )


def child(name: str, work: Path) -> None:
    started = time.perf_counter()
    TASKS[name](work)
    seconds = time.perf_counter() - started
    cpu = time.process_time()
    peak = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    rss = int(peak.split()[1]) * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "cpu": cpu, "rss": rss}))


def report(size: int, results: dict[str, list[dict[str, float]]]) -> str:
    """A table in Markdown, and what ALIA-40b would take at these speeds."""
    best = {name: min(run["seconds"] for run in runs) for name, runs in results.items()}
    lines = [
        f"model: {size / 1e9:.2f} GB in bf16",
        "",
        "| task | seconds | GB/s | of cp's speed | CPU seconds | peak RSS |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        cpu, rss = min(run["cpu"] for run in runs), max(run["rss"] for run in runs)
        own = "| | |" if name.startswith("cp") else f"| {cpu:.1f} | {rss:.2f} GB |"
        speed = (
            f"| {size / best[name] / 1e9:.2f} | {best['cp + sync'] / best[name]:.0%} "
        )
        shown = f"| {best[name]:.1f} {speed}" if best[name] > 0.01 else "| | | "
        lines.append(f"| {name} {shown}{own}")
    alia = 2 * ALIA_PARAMETERS
    lines += [
        "",
        f"ALIA-40b is {alia / 1e9:.0f} GB: at these speeds "
        + ", ".join(
            f"{name} {alia / size * seconds / 60:.1f} min"
            for name, seconds in best.items()
            if seconds > 0.01
        )
        + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="an empty or absent directory on the disk to measure",
    )
    parser.add_argument("--model", choices=MODELS, default="alia")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        child(options.task, options.work)
        return
    if options.work.exists() and any(options.work.iterdir()):
        parser.error(f"{options.work} is not empty")
    try:
        model = MODELS[options.model]
        layers = options.layers or model.num_hidden_layers
        model = dataclasses.replace(model, num_hidden_layers=layers)
        size = synthesize(options.work / "hf", model)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
        for _ in range(options.rounds):
            for name in TASKS:
                results[name].append(run_task(name, options.work))
                print(f"{name}: {results[name][-1]}", file=sys.stderr, flush=True)
            shutil.rmtree(options.work / "copy")
        print(report(size, results))
    finally:
        shutil.rmtree(options.work, ignore_errors=True)


if __name__ == "__main__":
    main()
