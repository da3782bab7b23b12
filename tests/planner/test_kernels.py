"""Time by attention kernels that are asked for by name, against what one H100 measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.planner import (
    StagePlan,
    assumptions_table,
    choices_table,
    plan_stage,
    plan_table,
    suggest_layouts,
)
from alia_ctx.planner.timing import row_time
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.machines import MACHINES
from tests.planner.test_planner import ALIA, LONG, shown

MEASURED = Path(__file__).parents[2] / "docs/benchmarks/gpu.md"
HOPPER = MACHINES["h100-80"]
SIZES: Any = (ALIA, LONG, 32_768, Layout(4, 4, 2), 32, 10**9, 4_194_304)


def planned(kernel: str, cluster: ClusterSpec = HOPPER) -> StagePlan:
    return plan_stage(*SIZES, cluster=cluster, attention=kernel)


def attention(kernel: str, cluster: ClusterSpec = HOPPER) -> float:
    plan = planned(kernel, cluster)
    ways: Any = ("forward", "backward")
    return sum(row_time(plan.work, cluster, 0, way).attention for way in ways)


def measured() -> dict[str, float]:
    """TFLOP/s forward and backward of each kernel on one document of 32,768 tokens."""
    page = MEASURED.read_text().partition("## All attention kernels on one GPU")[2]
    text = page.partition("on one H100 and a `flash3` built here")[2]
    rows = re.findall(r"\| 32,768, one \| 1 \| `(\w+)` \| \d+ \| (\d+) \|", text)
    return {kernel: float(speed) for kernel, speed in rows}


@pytest.mark.parametrize("kernel", ["flash2", "torch_varlen"])
def test_attention_takes_as_much_longer_as_was_measured(kernel: str) -> None:
    speeds = measured()
    ratio = attention(kernel) / attention("auto")
    assert ratio == pytest.approx(speeds["flash3"] / speeds[kernel], rel=0.01)
    slow, fast = planned(kernel), planned("auto")
    assert slow.timing.total > fast.timing.total and slow.memory == fast.memory


@pytest.mark.parametrize("kernel", ["flash3", "flash4"])
def test_the_fastest_take_what_auto_takes(kernel: str) -> None:
    assert planned(kernel).timing == planned("auto").timing


def test_another_card_and_a_share_of_ones_own_are_left_alone() -> None:
    for name in ("flash2", "torch_varlen"):
        a100 = MACHINES["a100-80"]
        assert planned(name, a100).timing == planned("auto", a100).timing
        own = replace(HOPPER, attention_efficiency=0.3)
        assert planned(name, own).timing == planned("auto", own).timing
    # The defaults are of a fast kernel too, which this one is not.
    nodes = MACHINES["marenostrum5"]
    assert attention("torch_varlen", nodes) == attention("torch_varlen")
    assert attention("torch_varlen", nodes) > attention("auto", nodes)


def test_the_plan_says_by_which_kernel_it_is() -> None:
    said = "attention by `torch_varlen` at 0.32 of the peak"
    cells = re.sub(r"[\s│]+", " ", shown(plan_table(planned("torch_varlen"))))
    assert said in cells
    table = shown(assumptions_table(HOPPER, attention="torch_varlen"))
    assert "at 0.32 of the peak" in " ".join(table.split())
    assert "at 0." not in shown(plan_table(planned("auto")))
    assert "`flash3`" not in shown(plan_table(planned("flash3")))


def test_there_is_no_figure_of_the_reference() -> None:
    plan = planned("reference")
    assert "many times as long" in plan.untimed and not planned("flash2").untimed
    text = shown(plan_table(plan))
    assert "not measured │ none:" in text and "node-hours" not in text
    choices = suggest_layouts(*SIZES[:3], *SIZES[4:], attention="reference")
    table = shown(choices_table(choices, limit=3))
    assert "No times: attention by `reference`" in table
    rows = [line for line in table.splitlines() if "tp=" in line]
    assert len(rows) == 3
    assert all(re.search(r"│ +- │ +- │", row) for row in rows)
