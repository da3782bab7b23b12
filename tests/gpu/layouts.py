"""Updates of a small decoder on the layouts of a number of GPUs, under torchrun:

    python -m alia_ctx.cli.launch --standalone --nproc-per-node=2 -m tests.gpu.layouts OUT

Writes OUT on the first rank, JSON: for each layout and precision the loss, gradient norm
and predicted tokens of each update, and the losses after a checkpoint that another
layout wrote was loaded. The attention kernel is the fastest in bf16 and the reference in
fp32, as the fast ones have no fp32. `away` is bf16 with inputs of layers on the host and
the MLP in chunks; `overlap` and `overlap16` are fp32 and bf16 with tensor-parallel
layers in chunks, and `linears` those layers against upstream's (`tests/mcore/linears.py`).
Where TransformerEngine is installed its layers run too, in bf16 and
in FP8. Of each layout and kind `seen` is what each rank did, as a layout or a setting
that does nothing trains like one GPU too.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alia_ctx.checkpoint import STATE
from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.engine import CONTEXT, MODEL, ROPE, save, tokens_passing, train
from tests.gpu.installed import is_installed
from tests.gpu.programs import write_results
from tests.mcore.chunk_messages import ChunkMessages
from tests.mcore.linears import differences

# Heads of 64, which every kernel has; 250 words are no multiple of 4.
WIDE: dict[str, Any] = {
    **MODEL,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
}
TWO = {
    "dp2": Layout(),
    "cp2": Layout(cp=2),
    "tp2": Layout(tp=2),
    "pp2": Layout(pp=2),
}
RATE = 1e-3
LINEARS = [(13, 3), (2, 5), (389, 3)]  # tokens of a rank, chunks
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "attention": "reference"},
    "bf16": {"precision": "bf16"},
    "away": {"offload_activations": True, "mlp_chunk_tokens": 20},
    "overlap": {"precision": "fp32", "attention": "reference", "tp_overlap_chunks": 3},
    "overlap16": {"tp_overlap_chunks": 3},
}
OF_TE: dict[str, dict[str, Any]] = {
    "te": {"layers": "te"},
    "fp8": {"layers": "te", "fp8": "current", "fp8_bf16_layers": 1},
}


def engine_of(layout: Layout, kind: dict[str, Any]) -> MegatronEngine:
    config = EngineConfig(loss_chunk_tokens=16, **kind)
    return MegatronEngine(
        *(ModelSpec(**WIDE), ROPE, CONTEXT, layout, config, OptimizerConfig()),
        recompute="full" if config.offload_activations else "none",
    )


class Seen:
    """What an engine does from now on, on this rank.

    tokens: of a row in its MLPs; products: of those in its first product at once. Of the
        first layer, the largest.
    messages: of its layers in chunks, a pass of a row through a layer (`ChunkMessages`).
    away: inputs of layers that were on the host at a time.
    """

    def __init__(self, engine: MegatronEngine) -> None:
        self.engine = engine
        self.passed = tokens_passing(engine)
        self.products: list[int] = []
        self.messages = ChunkMessages()
        first = engine.module.decoder.layers[0].mlp.linear_fc1
        first.register_forward_pre_hook(self._enter)

    def _enter(self, _: Any, inputs: Any) -> None:
        self.products.append(len(inputs[0]))

    def report(self) -> dict[str, Any]:
        context = self.engine.passes.forward_context
        pool = getattr(getattr(context, "__self__", None), "buffers", None)
        return {
            "layers": len(self.engine.module.decoder.layers),
            "parameters": sum(p.numel() for p in self.engine.parameters()),
            "by": self.engine.layers.words,
            "kernel": self.engine.kernel,
            "tokens": max(self.passed),
            "products": max(self.products),
            "messages": self.messages.report(len(self.passed)),
            "away": 0 if pool is None else pool.most,
        }


def main(out: Path) -> None:
    results: dict[str, Any] = {}
    with Distributed(EngineConfig()):
        layouts = TWO if dist.get_world_size() == 2 else {"single": Layout()}
        if layouts is TWO:
            results["linears"] = {
                f"{precision} {tokens} in {chunks}": differences(
                    precision, tokens, chunks
                )
                for precision in ("fp32", "bf16")
                for tokens, chunks in LINEARS
            }
        kinds = KINDS | (OF_TE if is_installed("te") else {})
        for name_of_kind, kind in kinds.items():
            states: dict[str, Path] = {}
            folder = Path(_agreed(tempfile.mkdtemp()))
            for name, layout in layouts.items():
                engine = engine_of(layout, kind)
                seen = Seen(engine)
                results[f"{name} {name_of_kind}"] = train(engine, range(3), RATE)
                results[f"{name} {name_of_kind} seen"] = engine.gather_objects(
                    seen.report()
                )
                states[name] = folder / name / STATE
                save(engine, states[name])
                results[f"{name} {name_of_kind} on"] = train(engine, range(3, 5), RATE)
            for name, layout in layouts.items():
                other = list(layouts)[(list(layouts).index(name) + 1) % len(layouts)]
                engine = engine_of(layout, kind)
                engine.load(states[other], with_optimizer=True)
                results[f"{name} {name_of_kind} resumed"] = train(
                    engine, range(3, 5), RATE
                )
    write_results(out, results)


def _agreed(value: str) -> str:
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
