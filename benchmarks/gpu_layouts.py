"""Training steps of ALIA's layers on the layouts of several GPUs: tokens/s a GPU, causal MFU,
memory, communication that nothing hides, and what the planner says of each.

    python -m alia_ctx.cli.launch --nproc-per-node=4 benchmarks/gpu_layouts.py \
        --out layouts.json \
        --case tp4:32768:8:none --case tp2cp2:32768:8:none --case cp4:32768:4:none:4

A case is layout:context:layers:recompute[:rows], rows in an update and data-parallel
rank (default 1), each one document. With several `--layers` and `--fp8` each runs with each
that go together, and with several `--tp-chunks` (`engine.tp_overlap_chunks`) each case
whose tp is above 1. The vocabulary is cut from 256,000 to 8,192, so that
layers fill the memory and not the embedding. Random weights, random tokens; bf16 with
fp32 gradients and optimizer state that the data-parallel ranks share (context-parallel
ranks are among them, as in Megatron).

tokens/s is over the whole update: forward, backward, reduction, optimizer's step. MFU:
FLOPs of all products with weights and of the attention that the causal mask lets
through, without what is recomputed, over the rate of an 8192^3 bf16 product in the same
process. Exposed communication: the time, of one profiled update on rank 0, in which a
NCCL kernel runs and no other kernel does. Waiting for a slower rank is in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.planner.stage import StagePlan, plan_stage
from alia_ctx.planner.workload import RowSizes
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from benchmarks.gpu_products import LOCAL, Products
from benchmarks.gpu_step import ROPE, alia_stack, draw_on_device, matrix_rate
from benchmarks.kernel_time import kernels_of

GIB = 2**30
VOCABULARY = 8192


@dataclass(frozen=True)
class Case:
    layout: Layout
    context: int
    layers: int
    recompute: str
    rows: int = 1

    @classmethod
    def parse(cls, text: str) -> Case:
        layout, context, layers, recompute, *rows = text.split(":")
        sizes = {name: int(n) for name, n in re.findall(r"([a-z]+)(\d+)", layout)}
        sizes.pop("dp", None)
        return cls(
            Layout(**sizes), int(context), int(layers), recompute, *map(int, rows)
        )

    def data_parallel(self, world: int) -> int:
        return world // (self.layout.tp * self.layout.pp * self.layout.cp)

    def tokens(self, world: int) -> int:
        """Of an update on `world` GPUs."""
        return self.context * self.rows * self.data_parallel(world)

    def planned(
        self,
        cluster: ClusterSpec,
        products: Products = LOCAL,
        packed: RowSizes | None = None,
        model: ModelSpec | None = None,
    ) -> StagePlan:
        """What the planner says of it on the GPUs of one node; of ALIA's layers, or of
        another model.
        """
        world = cluster.ranks_per_node
        return plan_stage(
            model or alia_stack(self.layers, VOCABULARY),
            ROPE,
            self.context,
            self.layout,
            world,
            self.tokens(world),
            self.tokens(world),
            recompute=self.recompute,  # type: ignore[arg-type]
            cluster=cluster,
            offload=products.offload == "on",
            packed=packed,
            fp8=products.fp8,  # type: ignore[arg-type]
            mlp_chunk_tokens=products.mlp_chunk or None,
            tp_overlap_chunks=products.tp_chunks,
            layers=products.layers,  # type: ignore[arg-type]
        )


def measure(
    case: Case, repeats: int, rate: float, products: Products = LOCAL
) -> dict[str, Any]:
    world = dist.get_world_size()
    dp = case.data_parallel(world)
    model = alia_stack(case.layers, VOCABULARY)
    engine = MegatronEngine(
        model,
        ROPE,
        case.context,
        case.layout,
        EngineConfig(
            layers=products.layers,
            fp8=products.fp8,
            fp8_bf16_layers=0,
            tp_overlap_chunks=products.tp_chunks,
        ),
        OptimizerConfig(),
        recompute=case.recompute,
        initializer=draw_on_device,
    )
    generator = np.random.default_rng(engine.data_parallel_rank)
    rows = [
        PackedRow.from_documents(
            [generator.integers(0, VOCABULARY, case.context)], case.context
        )
        for _ in range(case.rows)
    ]
    for _ in range(2):
        engine.train_update(rows, 1e-6)
    torch.cuda.reset_peak_memory_stats()
    results = [engine.train_update(rows, 1e-6) for _ in range(repeats)]
    peak = torch.tensor(torch.cuda.max_memory_allocated() / GIB, device="cuda")
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    seconds = statistics.median(
        r.compute_seconds + r.communication_seconds + r.step_seconds for r in results
    )
    tokens = case.tokens(world)
    flops = tokens * model.linear_flops_per_token() + case.rows * dp * (
        model.attention_flops([case.context])
    )
    planned = case.planned(
        ClusterSpec(ranks_per_node=world, memory_gib=80, overhead_gib=0),
        products,
    )
    return {
        "documents": case.rows * dp,
        "kernel": engine.kernel,
        "layers": engine.layers.words,
        "fp8": engine.fp8,
        "tp_chunks": products.tp_chunks,
        "seconds": seconds,
        "spread": [r.compute_seconds for r in results],
        "optimizer_seconds": statistics.median(r.step_seconds for r in results),
        "tokens_per_second_per_gpu": tokens / seconds / world,
        "tflops_per_gpu": flops / seconds / world / 1e12,
        "mfu": flops / seconds / world / 1e12 / rate,
        "peak_gib": float(peak),
        "planned_gib": planned.fullest.total,
        "planned_seconds": planned.timing.total,
        "exposed": exposed_communication(engine, rows),
        "losses": [r.loss for r in results],
    }


def exposed_communication(engine: MegatronEngine, rows: list[PackedRow]) -> Any:
    """Of one update: share of the time from the first kernel to the last in which only
    NCCL's kernels run, all time of NCCL's kernels, and time without any kernel.
    """
    kernels = [
        (start, end, "nccl" in name.lower())
        for name, start, end in kernels_of(lambda: engine.train_update(rows, 1e-6))
    ]
    work = _union([(a, b) for a, b, nccl in kernels if not nccl])
    talk = _union([(a, b) for a, b, nccl in kernels if nccl])
    busy = _union([(a, b) for a, b, _ in kernels])
    span = busy[-1][1] - busy[0][0] if busy else 1
    lengths = [sum(b - a for a, b in spans) for spans in (work, talk, busy)]
    return {
        "only_nccl": (lengths[2] - lengths[0]) / span,
        "nccl": lengths[1] / span,
        "idle": 1 - lengths[2] / span,
        "seconds": span / 1e6,
    }


def _union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", nargs="+", default=["local"])
    parser.add_argument("--fp8", nargs="+", default=["off"])
    parser.add_argument("--tp-chunks", nargs="+", type=int, default=[1])
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with Distributed(EngineConfig()):
        rate = torch.tensor(matrix_rate(), device="cuda")
        dist.all_reduce(rate, dist.ReduceOp.MIN)  # of the slowest GPU
        card = torch.cuda.get_device_name()
        combinations = Products.of(
            options.layers, options.fp8, tp_chunks=options.tp_chunks
        )
        runs = [(text, products) for text in options.case for products in combinations]
        for text, products in runs:
            case = Case.parse(text)
            if products.tp_chunks > 1 and case.layout.tp == 1:
                continue
            try:
                result = measure(case, options.repeats, float(rate), products)
            except torch.OutOfMemoryError as error:
                # Ranks of a layout do the same, so that all of them get here.
                result = {"out of memory": str(error).partition(".")[0]}
            if len(combinations) > 1:
                text = f"{text} {products}"
            results[text] = {"card": card, "matrix_tflops": float(rate), **result}
            gc.collect()
            torch.cuda.empty_cache()
            if dist.get_rank() == 0:
                options.out.write_text(json.dumps(results))
                print(text, json.dumps(results[text]), flush=True)


if __name__ == "__main__":
    main()
