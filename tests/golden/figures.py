"""Golden figures: what small runs compute, to the last bit, so that moving code is seen to
change nothing.

    python -m tests.golden.figures             # compare with figures.json
    python -m tests.golden.figures --write     # make figures.json anew; the commit says why

Two stages (64, then 256 tokens with another RoPE) on one rank and on dp2, cp2, tp2 and
pp2, in fp32 and bf16: the loss and gradient norm of every update as hexadecimal floats,
and the checksums of the last checkpoint's tensors. Then one import and export of a
random Llama: checksums of every file of weights, and the exported config.json.

The last bits depend on the processor's instructions and on torch. So figures are kept
with both, and elsewhere are
compared to rounding: see `compare`.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.distributed import run_distributed

FIGURES = Path(__file__).with_name("figures.json")
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "single": (1, {}),
    "dp2": (2, {}),
    "cp2": (2, {"cp": 2}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
}
PRECISIONS = ("fp32", "bf16")
# Elsewhere a sum of some thousand products may round otherwise: in fp32 near 1e-7 a
# step, in bf16 near 4e-3.
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}


def machine() -> str:
    """What the last bits depend on: torch, and the processor as its vendor names it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        first = info.read_text().partition("\n\n")[0]
        fields = dict(
            map(str.strip, line.split(":", 1))
            for line in first.splitlines()
            if ":" in line
        )
        model = " ".join(
            fields.get(k, "?")
            for k in ("model name", "cpu family", "model", "stepping")
        )
    return (
        f"torch {torch.__version__}; {torch.backends.cpu.get_cpu_capability()}; {model}"
    )


def training(world: int) -> dict[str, Any]:
    """Figures of the runs on `world` ranks, by layout and precision."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(run_distributed(_train_all, world, folder)[0])


def _train_all(rank: int, folder: str) -> dict[str, Any]:
    import torch.distributed as dist

    from alia_ctx import workflow
    from alia_ctx.config.load import load_run
    from tests.small_run import write_run

    figures = {}
    for layout, (world, sizes) in LAYOUTS.items():
        for precision in PRECISIONS if world == dist.get_world_size() else ():
            name = f"{layout} {precision}"
            home = Path(folder, name.replace(" ", "-"))
            overrides = [
                f"engine.precision={precision}",
                f"cluster.ranks_per_node={world}",
                "metrics.sinks=[]",
                "stages.long.pack.data=restart",  # the figures' rows
                *(
                    f"stages.{s}.layout.{k}={v}"
                    for s in ("short", "long")
                    for k, v in sizes.items()
                ),
            ]
            if rank == 0:
                home.mkdir()
                write_run(home)
            dist.barrier()
            run = load_run(home / "run.yaml", overrides)
            for stage in run.stages:
                if rank == 0:
                    workflow.pack(run, stage)
                dist.barrier()
                workflow.train(run, stage)
            dist.barrier()
            if rank == 0:
                figures[name] = {stage: _stage(home, stage) for stage in run.stages}
    return figures


def _stage(home: Path, stage: str) -> dict[str, Any]:
    from tests.small_run import metrics

    lines = metrics(home, stage)
    last = sorted((home / "out" / "stages" / stage / "checkpoints").glob("update-*"))[
        -1
    ]
    files = json.loads((last / "manifest.json").read_text())["files"]
    return {
        "losses": [line["loss"].hex() for line in lines],
        "gradient_norms": [line["gradient_norm"].hex() for line in lines],
        "predicted_tokens": [line["predicted_tokens"] for line in lines],
        "state": {
            n: e["xxh3_128"] for n, e in sorted(files.items()) if n.endswith(".distcp")
        },
    }


def conversion() -> dict[str, Any]:
    """Checksums of an imported and exported Llama of random weights, which NumPy draws:

    the same everywhere.
    """
    from safetensors.numpy import save_file

    from alia_ctx.files import file_checksum
    from tests.golden.conversion import round_trip

    generator = np.random.default_rng(11)
    hidden, ffn, vocabulary, layers, heads, groups, size = 32, 48, 97, 2, 4, 2, 8
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (hidden,),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (heads * size, hidden),
            at + "self_attn.k_proj.weight": (groups * size, hidden),
            at + "self_attn.v_proj.weight": (groups * size, hidden),
            at + "self_attn.o_proj.weight": (hidden, heads * size),
            at + "mlp.gate_proj.weight": (ffn, hidden),
            at + "mlp.up_proj.weight": (ffn, hidden),
            at + "mlp.down_proj.weight": (hidden, ffn),
        }
    with tempfile.TemporaryDirectory() as folder:
        source, checkpoint, target = (
            Path(folder, name) for name in ("hf", "checkpoint", "export")
        )
        source.mkdir()
        weights = {
            n: generator.standard_normal(s).astype(np.float32)
            for n, s in shapes.items()
        }
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary,
            "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": size,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "float32",
            "bos_token_id": 1, "eos_token_id": 2,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            },
        }  # fmt: skip
        (source / "config.json").write_text(json.dumps(config))
        round_trip(source, checkpoint, target)
        state = {
            p.name: file_checksum(p)
            for p in sorted((checkpoint / "state").glob("*.distcp"))
        }
        shards = {
            p.name: file_checksum(p) for p in sorted(target.glob("*.safetensors"))
        }
        return {
            "state": state,
            "safetensors": shards,
            "config": json.loads((target / "config.json").read_text()),
        }


def make() -> dict[str, Any]:
    return {
        "machine": machine(),
        "training": {**training(1), **training(2)},
        "conversion": conversion(),
    }


def compare(now: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    """Every figure that differs, a line each.

    On another machine training is compared to rounding, without bytes.
    """
    problems = []
    if now["conversion"] != golden["conversion"]:
        problems.append(
            f"conversion: {golden['conversion']} became {now['conversion']}"
        )
    same_machine = now["machine"] == golden["machine"]
    for name, stages in golden["training"].items():
        for stage, then in stages.items():
            figures = now["training"][name][stage]
            for key, expected in then.items():
                found = figures[key]
                if same_machine or key == "predicted_tokens":
                    if found != expected:
                        problems.append(
                            f"{name}, {stage}, {key}: {expected} became {found}"
                        )
                elif key in ("losses", "gradient_norms"):
                    a, b = (
                        np.array([float.fromhex(v) for v in values])
                        for values in (expected, found)
                    )
                    worst = (
                        float(np.max(np.abs(a - b) / np.abs(a)))
                        if a.shape == b.shape
                        else np.inf
                    )
                    if not worst <= TOLERANCE[name.split()[1]]:
                        problems.append(
                            f"{name}, {stage}, {key}: differs by {worst:.1e}"
                        )
    return problems


def main() -> int:
    now = make()
    if "--write" in sys.argv:
        FIGURES.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    problems = compare(now, json.loads(FIGURES.read_text()))
    print("\n".join(problems) or f"identical ({now['machine']})")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
