"""What GPUs took of memory and time, and what the planner says of the same.

docs/benchmarks/planner-rows.json has a row for each configuration that was measured:
`case` as `gpu_layouts.py` has it, layers and settings as its `Products`. `gib` is the peak
of tensors, `seconds` those of an update (`UPDATES`), elsewhere of forward and backward.
`state: gradients` is a run without main weights and moments; `pairs` the query-key pairs of
a row of several documents. No constant of the planner was fitted to `later` rows, which were
measured afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from alia_ctx.planner.stage import StagePlan
from alia_ctx.planner.timing import once_seconds
from alia_ctx.planner.workload import RowSizes
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.machines import MACHINES
from benchmarks.gpu_layouts import Case
from benchmarks.gpu_products import Products
from benchmarks.stacks import smollm2

ROWS = Path(__file__).parents[1] / "docs/benchmarks/planner-rows.json"
# Rows whose seconds are those of whole updates; of others the optimizer's step is left out.
UPDATES = tuple(
    f"gpu-several.md, {name}" for name in ("layouts", "two GPUs", "two against one")
)
# What the constants of time are for: kernels that reach two thirds of the peak.
FAST = ("flash3", "flash4")


@dataclass(frozen=True)
class Measured:
    """A row of the file."""

    where: str
    card: str
    gpus: int
    kernel: str
    case: str
    gib: float | None = None
    seconds: float | None = None
    layers: str = "local"
    fp8: str = "off"
    offload: str = "off"
    mlp_chunk: int = 0
    tp_chunks: int = 1
    state: str = "all"
    documents: int = 1
    pairs: int | None = None
    model: str = "alia"
    later: bool = False

    @property
    def machine(self) -> ClusterSpec:
        """The card in a host of as many, without the guess of overhead."""
        name = {"H100": "h100-80", "H200": "h200"}[self.card]
        return replace(MACHINES[name], ranks_per_node=self.gpus, overhead_gib=0.0)

    @property
    def tight_machine(self) -> ClusterSpec:
        """A card of this run's peak alone, with the guess of overhead."""
        machine = replace(self.machine, overhead_gib=ClusterSpec().overhead_gib)
        return replace(machine, memory_gib=1.002 * (self.gib or 0.0))

    @property
    def products(self) -> Products:
        return Products(
            self.layers, self.fp8, self.offload, self.mlp_chunk, self.tp_chunks
        )

    @property
    def words(self) -> str:
        """What tells it from other rows."""
        parts = [self.case] + ["SmolLM2-135M"] * (self.model == "smollm2")
        parts += ["TE"] * (self.layers == "te")
        parts += [f"FP8 {self.fp8}"] * (self.fp8 != "off")
        parts += ["inputs on the host"] * (self.offload == "on")
        parts += [f"MLP chunks of {self.mlp_chunk:,}"] * bool(self.mlp_chunk)
        parts += [f"{self.tp_chunks} TP chunks"] * (self.tp_chunks > 1)
        parts += [f"{self.documents} documents"] * (self.documents > 1)
        parts += [self.kernel] * (self.kernel not in FAST)
        return ", ".join(parts)

    def planned(self, cluster: ClusterSpec | None = None) -> StagePlan:
        case = Case.parse(self.case)
        packed = None
        if self.pairs is not None:
            packed = RowSizes(case.context, case.context, self.pairs)
        model = smollm2(case.layers, 49_152) if self.model == "smollm2" else None
        return case.planned(
            *(cluster or self.machine, self.products, packed, model, self.kernel)
        )

    def planned_gib(self) -> float:
        """Of the tensors, without what this run did not hold."""
        rank = self.planned().fullest
        if self.state == "gradients":
            return sum(rank.items.values()) - rank.items["optimizer"]
        return rank.total

    def planned_seconds(self, cluster: ClusterSpec | None = None) -> float:
        """Without the optimizer's step where that was not in what was measured."""
        plan = self.planned(cluster)
        if self.where in UPDATES:
            return plan.timing.total
        last = plan.work.layout.pp - 1
        _, optimizer = once_seconds(plan.work.in_mean_rows, plan.cluster, last)
        return plan.timing.total - optimizer


def measured_rows() -> list[Measured]:
    """All rows, in the order of the file."""
    return [Measured(**row) for row in json.loads(ROWS.read_text())]
