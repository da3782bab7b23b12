"""What a rank of a layout really holds, beside the planner's own figures for it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.table import Table

from alia_ctx.errors import AliaError
from alia_ctx.planner import StagePlan
from alia_ctx.planner.layer_memory import layer_activations
from alia_ctx.planner.memory import optimizer_bytes


def counted_without_memory(plans: Sequence[StagePlan]) -> list[dict[str, int]]:
    """What one rank of each plan's layout really holds, built on meta tensors in a process
    of its own: `parameters`, `optimizer_bytes`, and `activation_bytes` of a row. Layers are
    Megatron-Core's, in bf16 where the plan has FP8.

    AliaError with the last line of that process where it fails.
    """
    asked = [
        {
            "model": dataclasses.asdict(plan.work.model),
            "context": plan.work.in_longest_rows.context,
            "layout": dataclasses.asdict(plan.work.layout),
            "world_size": plan.work.world_size,
            "recompute": plan.work.recompute,
            "precision": plan.work.precision,
        }
        for plan in plans
    ]
    # No GPU is touched, and nothing is compiled: shapes are all that is wanted.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "alia_ctx.mcore.dry_run"],
        input=json.dumps(asked),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise AliaError(f"the dry run failed: {lines[-1]}; report it with the layout")
    counts: list[dict[str, int]] = json.loads(done.stdout)
    return counts


def expected_counts(plan: StagePlan) -> dict[str, int]:
    """The planner's own figures for what `counted_without_memory` counts: none of FP8."""
    rank = plan.memory[0]
    work = replace(plan.work.in_longest_rows, fp8="off", layers="local")
    saved, collected = layer_activations(work)
    kept = saved + (0 if work.recompute == "full" else collected)
    return {
        "parameters": rank.parameters,
        "optimizer_bytes": optimizer_bytes(work, rank.parameters),
        "activation_bytes": work.layers_per_stage * kept,
    }


_COUNTED_IN_BF16 = (
    "in bf16 on both sides: the FP8 figures of the plan are not what was counted"
)


def dry_run_table(plans: Mapping[str, StagePlan]) -> Table:
    """Of the first pipeline rank of each stage's layout, by its name: what the plan says, and
    what was counted.
    """
    title = "One rank, built on meta tensors and counted"
    if any(plan.work.fp8 != "off" for plan in plans.values()):
        # TransformerEngine's layers, which alone have FP8, know no meta tensors.
        title += f"; {_COUNTED_IN_BF16}"
    table = Table(title=title)
    for heading in ("stage", "", "planned", "counted", "difference"):
        left = heading in ("stage", "")
        table.add_column(heading, justify="left" if left else "right")
    counted = counted_without_memory([*plans.values()])
    for (name, plan), counts in zip(plans.items(), counted, strict=True):
        heading = name
        for figure, planned in expected_counts(plan).items():
            there = counts[figure]
            off = f"{there / planned - 1:+.2%}" if planned else "-"
            words = figure.replace("_", " ")
            table.add_row(heading, words, f"{planned:,}", f"{there:,}", off)
            heading = ""
    return table
