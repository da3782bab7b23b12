"""What two ranks do that one does not, under torchrun:

    python -m alia_ctx.cli.launch --standalone --nproc-per-node=2 -m tests.gpu.pairs OUT

Writes OUT on the first rank, JSON. Of each layout on which two ranks share a row, and of each
precision: how far a token of one packed document reaches into others (the product's leak
probe, `alia-ctx evaluate --measure leak`). Of two data-parallel ranks: whether what was
saved in the background while training went on is, on each rank, what was there when the
save began.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.evaluation.leak import LeakCounts, probes
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.dense import ALIA_160K
from tests.engine import rows_of
from tests.gpu.programs import write_results

SHARED = {"cp2": Layout(cp=2), "tp2": Layout(tp=2)}
PRECISIONS = ("fp32", "bf16")
CONTEXT = 512
RATE = 1e-3
# Heads of 64, which every kernel has.
MODEL: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 256,
}


def engine_of(precision: str, layout: Layout, **others: Any) -> MegatronEngine:
    settings = EngineConfig(
        precision=precision,  # type: ignore[arg-type]
        attention="reference" if precision == "fp32" else "auto",
    )
    return MegatronEngine(
        *(ModelSpec(**MODEL), ALIA_160K, CONTEXT, layout, settings, OptimizerConfig()),
        **others,
    )


def leaks(precision: str, layout: Layout) -> dict[str, Any]:
    """Of both ranks: positions of other documents that were compared, those whose loss
    moved by any bit, and those of the changed document itself.
    """
    engine = engine_of(precision, layout)
    counts = LeakCounts()
    for probe in probes(MODEL["vocab_size"], CONTEXT):
        found = [engine.row_losses([row]) for row in (probe.row, probe.changed_row)]
        if all(found):
            counts.add(probe, *(losses[0].as_row() for losses in found))
    parts = engine.gather_objects(counts.to_json())
    whole = LeakCounts()
    for part in parts:
        whole.merge(LeakCounts.from_json(part))
    return {**whole.to_json(), "parts": [part["positions"] for part in parts]}


def state(engine: MegatronEngine) -> list[torch.Tensor]:
    """The weights, and this rank's part of main weights and moments."""
    assert engine.optimizer is not None
    engine.optimizer.gather_weights()
    tensors = [p.detach().clone() for p in engine.parameters()]
    for _, states in engine.optimizer.states():
        tensors += [values.clone() for values in states.values()]
    return tensors


def background_save(precision: str) -> dict[str, Any]:
    """Of both ranks: whether training moved what they hold, and whether what was saved is
    what they held.
    """
    engine = engine_of(precision, Layout())
    rows = rows_of(0, MODEL["vocab_size"])[engine.rank :: 2]
    for _ in range(2):
        engine.train_update(rows, RATE)
    folder = Path(_agreed(tempfile.mkdtemp()))
    if engine.rank == 0:
        (folder / "state").mkdir()
    engine.barrier()
    saving = engine.begin_save(folder)
    expected = state(engine)
    for _ in range(3):
        engine.train_update(rows, 100 * RATE)
    saving.finish()
    moved = not _equal(state(engine), expected)
    fresh = engine_of(precision, Layout(), seed=5)
    began = not _equal(state(fresh), expected)
    fresh.load(folder / "state", with_optimizer=True)
    found = {
        "moved": moved and began,
        "saved": _equal(state(fresh), expected),
        "tensors": len(expected),
    }
    both = engine.gather_objects(found)
    return {name: [part[name] for part in both] for name in found}


def _equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _agreed(value: str) -> str:
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def main(out: Path) -> None:
    results: dict[str, Any] = {}
    with Distributed(EngineConfig()):
        for precision in PRECISIONS:
            for name, layout in SHARED.items():
                results[f"leaks {name} {precision}"] = leaks(precision, layout)
            results[f"save dp2 {precision}"] = background_save(precision)
    write_results(out, results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
