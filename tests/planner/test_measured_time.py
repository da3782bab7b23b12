"""The planner's seconds beside what GPUs measured, by constants fitted to half of the rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.machines import MACHINES, MEASURED_ON_HOPPER, speeds_from
from benchmarks.measured_rows import FAST, Measured, measured_rows
from benchmarks.planner_against_gpu import SECONDS, fit, missed, to_fit

ROWS = [row for row in measured_rows() if row.seconds is not None]
FITTED = to_fit(measured_rows())
QUOTED = [row for row in ROWS if row not in FITTED]
LATER = [row for row in ROWS if row.later]


@pytest.mark.long
def test_the_constants_were_fitted_to_half_of_the_rows() -> None:
    assert fit(FITTED) == MEASURED_ON_HOPPER


def test_cards_of_one_chip_have_one_pair_of_constants() -> None:
    """Or the plan would have one rent the card that somebody measured on a better day."""
    for name in ("h100-80", "h200"):
        machine = MACHINES[name]
        pair = machine.efficiency, machine.attention_efficiency
        assert pair == MEASURED_ON_HOPPER
        assert "this engine's runs" in speeds_from(machine)


def test_what_was_measured_on_no_card_is_said_to_be_the_defaults() -> None:
    assert "not to this card" in speeds_from(MACHINES["marenostrum5"])
    own = replace(ClusterSpec(), efficiency=0.5)
    assert speeds_from(own) == "as the configuration says"


@pytest.mark.parametrize("row", QUOTED, ids=lambda row: f"{row.where} {row.words}")
def test_time_of_rows_that_were_not_fitted(row: Measured) -> None:
    assert row.seconds is not None
    assert abs(row.planned_seconds() / row.seconds - 1) < SECONDS


def test_a_slower_kernel_is_planned_by_its_own_speed() -> None:
    """By the fast kernels' constant the step of torch_varlen is 15% short."""
    (row,) = (row for row in ROWS if row.kernel not in FAST)
    fast = replace(row, kernel="flash4").planned_seconds()
    assert row.seconds is not None and fast / row.seconds < 0.88
    assert abs(row.planned_seconds() / row.seconds - 1) < 0.08


def test_fp8_moves_the_planners_errors_little() -> None:
    """Why its layouts are told apart as bf16's are: each case beside its own bf16."""
    cases: dict[tuple[object, ...], dict[str, float]] = {}
    for row in ROWS:
        if row.layers == "te" and row.documents == 1:
            key = row.card, row.gpus, row.case
            error = row.planned_seconds() / (row.seconds or 0) - 1
            cases.setdefault(key, {})[row.fp8] = error
    both = {k: e for k, e in cases.items() if {"off", "current"} <= {*e}}
    assert len(both) == 6
    moved = {key: errors["current"] - errors["off"] for key, errors in both.items()}
    assert all(abs(points) < 0.035 for points in moved.values())
    tp, dp = (
        both["H200", 2, f"{way}2:32768:3:none"]["current"] for way in ("tp", "dp")
    )
    assert abs(tp - dp) < 0.05


def test_rows_that_were_measured_later_are_within_a_tenth() -> None:
    """No half of one series: layouts, FP8 and recomputation that nothing had been fitted to."""
    errors = [row.planned_seconds() / (row.seconds or 0) - 1 for row in LATER]
    assert len(LATER) == 21 and all(abs(error) < 0.1 for error in errors)
    assert {row.gpus for row in LATER} == {1, 2, 4}


def test_the_rows_that_miss_the_aim_are_known() -> None:
    """None, the one by a slower kernel among them."""
    assert [row.words for row in measured_rows() if missed(row)] == []
