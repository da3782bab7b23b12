"""What an update does once, and with gradients by row, as the planner times it: against sums by
hand, and against updates of one and four rows on one GPU.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from alia_ctx.planner.timeline import simulate
from alia_ctx.planner.timing import once_seconds, row_time, update_time
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from benchmarks.measured_rows import measured_rows
from tests.planner.test_planner import ALIA

GB = 1e9
NODE = ClusterSpec(ranks_per_node=4, memory_gb_per_s=1000)


def work(layout: Layout, world: int, **changes: object) -> Workload:
    made = Workload(ALIA, 32_768, layout, world, 10**9, 8 * 32_768)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "world", "owners"), [(Layout(), 1, 1), (Layout(cp=4), 8, 8)]
)
@pytest.mark.parametrize(("precision", "rounded"), [("bf16", 6), ("fp32", 0)])
def test_all_gradients_are_zeroed_and_scaled_and_owners_step(
    layout: Layout, world: int, owners: int, precision: str, rounded: int
) -> None:
    """In fp32: written; read and written. The norm reads twice. AdamW's passes: weights decay
    (8), first moment and gradient (12), second moment (8) and with the gradient twice (16,
    12 if the second reading is cached), root (8), divided (8), added to (8), and weight by
    moment by root (16).
    """
    gradients, optimizer = once_seconds(
        work(layout, world, precision=precision), NODE, 0
    )
    parameters = ALIA.parameters()
    assert gradients == pytest.approx(parameters * (4 + 8) / (1000 * GB))
    adamw = 8 + 12 + 8 + 12 + 8 + 8 + 8 + 16
    owned = parameters / owners
    assert optimizer == pytest.approx(owned * (2 * 4 + adamw + rounded) / (1000 * GB))


def test_a_row_adds_its_gradients_backward() -> None:
    one = work(Layout(), 1)
    assert row_time(one, NODE, 0, "forward").gradients == 0
    added = row_time(one, NODE, 0, "backward").gradients
    assert added == pytest.approx(ALIA.parameters() * (2 + 4 + 4) / (1000 * GB))
    timing = update_time(one, NODE)
    slower = update_time(one, replace(NODE, memory_gb_per_s=500))
    assert slower.total - timing.total == pytest.approx(timing.step + 8 * added)
    assert slower.compute - timing.compute == pytest.approx(8 * added)


def test_one_and_four_rows_of_one_gpu() -> None:
    """One H200, three ALIA layers: of two lengths of an update what is of no row follows, in
    which for 23 to 29 ms nothing runs (docs/benchmarks/gpu-several.md).
    """
    one, four = (
        row
        for case in ("dp1:32768:3:none", "dp1:32768:3:none:4")
        for row in measured_rows()
        if row.case == case and row.later
    )
    assert one.seconds and four.seconds
    once = one.seconds - (four.seconds - one.seconds) / 3
    timing = one.planned().timing
    assert once - 0.035 < timing.step < once - 0.018
    assert timing.data_parallel == 0
    # That much of the optimizer, on a step of five layers (docs/benchmarks/gpu.md): 5%.
    [row] = [
        r for r in measured_rows() if "20 documents" in r.words and ":5:" in r.case
    ]
    plan = row.planned()
    _, optimizer = once_seconds(plan.work, plan.cluster, 0)
    assert optimizer / ((row.seconds or 0) + optimizer) == pytest.approx(
        0.05, abs=0.006
    )


def test_short_rows_of_several_gpus_are_no_longer_missed() -> None:
    """16, 11 and 10% short before."""
    errors = {
        row.words: row.planned_seconds() / (row.seconds or 0) - 1
        for row in measured_rows()
        if row.case in ("cp4:32768:6:none", "tp2cp2:32768:8:none", "cp2:32768:3:none")
    }
    assert len(errors) == 3 and all(-0.11 < error < 0 for error in errors.values())


def test_a_trace_draws_the_step_after_the_reduction() -> None:
    spread = work(Layout(4, 2, 1), 32)
    shares = [[(row, spread.causal_pairs)] for row in range(4)]
    node = replace(NODE, memory_gb_per_s=10)
    drawn = simulate(spread, node, shares)
    [step] = [e for e in drawn.events if e.kind == "step" and e.lane[0] == 0]
    assert step.lane == (0, 0, "compute")
    assert step.seconds == pytest.approx(update_time(spread, node).step)
    reduction = next(
        e for e in drawn.events if e.kind == "gradients' reduction" and e.lane[0] == 0
    )
    assert step.start == pytest.approx(reduction.end)
