"""Training steps of ALIA's layers on the layouts of several GPUs: tokens/s a GPU, causal MFU,
memory, communication that nothing hides, and what the planner says of each.

    python -m alia_ctx.cli.launch --nproc-per-node=4 benchmarks/gpu_layouts.py \
        --out layouts.json \
        --case tp4:32768:8:none --case tp2cp2:32768:8:none --case cp4:32768:4:none:4

A case is layout:context:layers:recompute[:rows], rows in an update and data-parallel
rank (default 1), each one document. The layout names all of the GPUs, data-parallel ranks
as well: `tp2dp2` is of four. With several `--layers` and `--fp8` each runs with each
that go together, and with several `--tp-chunks` (`engine.tp_overlap_chunks`) each case
whose tp is above 1. The vocabulary is cut from 256,000 to 8,192, so that
layers fill the memory and not the embedding. Random weights, random tokens; bf16 with
fp32 gradients and optimizer state that the data-parallel ranks share (context-parallel
ranks are among them, as in Megatron). An update of one row shows what an update does once
(the optimizer's step, and gradients zeroed, scaled, reduced), which more rows share: cases
of different rows are not comparable a GPU.

tokens/s is over the whole update: forward, backward, reduction, optimizer's step. MFU:
FLOPs of all products with weights and of the attention that the causal mask lets
through, without what is recomputed, over the rate of an 8192^3 bf16 product in the same
process. Exposed communication: the time, of one profiled update on rank 0, in which a
NCCL kernel runs and no other kernel does. Waiting for a slower rank is in it. The planner
takes the constants of the card's file in configs/clusters/, and its defaults where there is
none; `planned_by` says which.

A case for which the memory does not suffice, or that the engine refuses, is recorded so,
and the program ends with status 1; with pp above 1 it ends where memory does not suffice.
`--out` is of one run: a file that is there is refused.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import AliaError
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.planner.stage import StagePlan, plan_stage
from alia_ctx.planner.workload import RowSizes
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.execution import Recompute
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.machines import MACHINES
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.rendezvous import World
from benchmarks import gpu_program
from benchmarks.figures import first_odd
from benchmarks.gpu_products import LOCAL, Products
from benchmarks.gpu_program import Parser, at_least, parsed
from benchmarks.gpu_step import ROPE, draw_on_device
from benchmarks.kernel_time import kernels_of, matrix_rate
from benchmarks.pages import WriteError, write_whole
from benchmarks.releases import ENGINE, releases
from benchmarks.stacks import alia_stack

GIB = 2**30
VOCABULARY = 8192


@dataclass(frozen=True)
class Case:
    layout: Layout
    context: int
    layers: int
    recompute: str
    rows: int = 1
    dp: int = 1

    @classmethod
    def parse(cls, text: str) -> Case:
        """ValueError where the text is no case."""
        layout, *fields = text.split(":")
        if len(fields) not in (3, 4):
            raise ValueError("a case is layout:context:layers:recompute[:rows]")
        parts = re.findall(r"([a-z]+)(\d+)", layout)
        sizes = {name: int(size) for name, size in parts}
        if (
            "".join(name + size for name, size in parts) != layout
            or not sizes.keys() <= {"tp", "cp", "pp", "dp"}
            or len(sizes) < max(1, len(parts))
            or min(sizes.values()) < 1
        ):
            raise ValueError(
                "a layout is tp, cp, pp and dp with sizes, as tp2cp2 or dp4"
            )
        context, layers, recompute, *rows = fields
        if recompute not in get_args(Recompute):
            raise ValueError(
                f"recomputation is one of {', '.join(get_args(Recompute))}"
            )
        case = cls(
            *(Layout(**{n: s for n, s in sizes.items() if n != "dp"}), int(context)),
            *(int(layers), recompute, int(rows[0]) if rows else 1, sizes.get("dp", 1)),
        )
        if min(case.context, case.layers, case.rows) < 1:
            raise ValueError("context, layers and rows are 1 or more")
        return case

    def problem(self, world: int) -> str | None:
        """Why it is no case of `world` GPUs, or of the model."""
        if (named := self.layout.model_ranks * self.dp) != world:
            return (
                f"is of {named} GPUs and there are {world}; data-parallel ranks are named "
                "too, as tp2dp2"
            )
        model = alia_stack(self.layers, VOCABULARY)
        found = self.layout.problems("layout", model, self.context, world)
        return "; ".join(map(str, found)) or None

    def data_parallel(self, world: int) -> int:
        return self.layout.data_parallel(world)

    def tokens(self, world: int) -> int:
        """Of an update on `world` GPUs."""
        return self.context * self.rows * self.data_parallel(world)

    def planned(
        self,
        cluster: ClusterSpec,
        products: Products = LOCAL,
        packed: RowSizes | None = None,
        model: ModelSpec | None = None,
        attention: str = "auto",
    ) -> StagePlan:
        """What the planner says of it on the GPUs of one node; of ALIA's layers, or of
        another model; by one of the fast attention kernels, or the one that is named.
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
            layers=products.layers,  # type: ignore[arg-type]
            attention=attention,
        )


# Machines of `alia_ctx.spec.machines` by the whole name that torch has for their GPU: cards on
# PCIe and parts of a card, which are slower, have other names.
_MACHINES = {
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA H100 80GB HBM3": "h100-80",
    "NVIDIA H200": "h200",
}


def cluster_of(card: str, world: int) -> tuple[str, ClusterSpec]:
    """A host of `world` such cards, without the guess of overhead, and where its constants
    are from: a file's name in configs/clusters/, or "defaults".
    """
    name = _MACHINES.get(card, "defaults")
    machine = MACHINES.get(name, ClusterSpec())
    return name, replace(machine, ranks_per_node=world, overhead_gib=0.0)


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
    planned_by, cluster = cluster_of(torch.cuda.get_device_name(), world)
    planned = case.planned(cluster, products)
    return {
        "ranks": world,
        "documents": case.rows * dp,
        "kernel": engine.kernel,
        "layers": engine.layers.words,
        "fp8": engine.fp8,
        "releases": releases(ENGINE),
        "tp_chunks": products.tp_chunks,
        "seconds": seconds,
        "spread": [r.compute_seconds for r in results],
        "optimizer_seconds": statistics.median(r.step_seconds for r in results),
        "tokens_per_second_per_gpu": tokens / seconds / world,
        "tflops_per_gpu": flops / seconds / world / 1e12,
        "mfu": flops / seconds / world / 1e12 / rate,
        "peak_gib": float(peak),
        "planned_by": planned_by,
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
    parser = Parser()
    parser.add_argument("--case", action="append", required=True, type=parsed(_named))
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--out", type=gpu_program.absent_file, required=True)
    parser.add_argument(
        "--layers", nargs="+", choices=gpu_program.choices("layers"), default=["local"]
    )
    parser.add_argument(
        "--fp8", nargs="+", choices=gpu_program.choices("fp8"), default=["off"]
    )
    parser.add_argument("--tp-chunks", nargs="+", type=at_least(1), default=[1])
    options = parser.parse_args()
    world = parser.world_size()
    runs = runs_of(parser, options, world)
    parser.require_gpus(world)
    results: dict[str, Any] = {}
    with (
        Distributed(EngineConfig()),
        parser.writing(
            options.out, rank=dist.get_rank(), gather=World().gather_objects
        ),
    ):
        # By now, of one that was just leaving.
        if World().gather_objects(options.out.exists())[0]:
            parser.refuse(f"{options.out} is there already; name another file")
        rate = torch.tensor(matrix_rate(), device="cuda")
        dist.all_reduce(rate, dist.ReduceOp.MIN)  # of the slowest GPU
        card = torch.cuda.get_device_name()
        for text, (case, products) in runs.items():
            alone = False
            try:
                result = measure(case, options.repeats, float(rate), products)
            except torch.OutOfMemoryError as error:
                result = {"out of memory": str(error).partition(".")[0]}
                alone = case.layout.pp > 1
            except AliaError as error:
                result = {"refused": str(error)}
            results[text] = {
                "card": card,
                "torch": torch.__version__,
                "matrix_tflops": float(rate),
                **result,
            }
            gpu_program.forget_case()
            if dist.get_rank() == 0:
                try:
                    write_whole(json.dumps(results), options.out)
                except WriteError as error:
                    gpu_program.end_at_once(str(error), 1)
                print(text, json.dumps(results[text]), flush=True)
            # Ranks of one stage hold and compute the same, so that all of them get here;
            # those of other stages hold other layers, and may wait for this one in NCCL.
            if alone:
                gpu_program.end_at_once(
                    f"{text}: out of memory on rank {dist.get_rank()}; other stages may wait "
                    f"for it, so the program ends; {options.out} has what is done",
                    1,
                )
    gpu_program.end(
        (text for text in runs if "seconds" not in results[text]),
        (t for t in runs if first_odd(results[t].get("losses", ())) is not None),
    )


def _named(text: str) -> tuple[str, Case]:
    return text, Case.parse(text)


def runs_of(
    parser: Parser, options: argparse.Namespace, world: int
) -> dict[str, tuple[Case, Products]]:
    """What is to be measured, by its name in the file; ends here where it makes no sense."""
    try:
        combinations = Products.of(
            options.layers, options.fp8, tp_chunks=options.tp_chunks
        )
    except ValueError as error:
        parser.error(str(error))
    runs = {}
    for text, case in options.case:
        if (problem := case.problem(world)) is not None:
            parser.error(f"--case {text}: {problem}")
        fitting = [p for p in combinations if p.tp_chunks == 1 or case.layout.tp > 1]
        if not fitting:
            parser.error(f"--case {text}: --tp-chunks above 1 are of tp above 1")
        for products in fitting:
            name = f"{text} {products}" if len(combinations) > 1 else text
            runs[name] = case, products
    return runs


if __name__ == "__main__":
    main()
