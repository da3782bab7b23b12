"""The planner's memory beside what GPUs had allocated at the peak of an update, GiB."""

from __future__ import annotations

import pytest

from benchmarks.measured_rows import Measured, measured_rows

ROWS = [row for row in measured_rows() if row.gib is not None]


def test_every_kind_of_run_is_among_the_rows() -> None:
    """So that none can be left out because it is missed."""
    kinds = {
        (row.card, row.gpus > 1, row.layers, row.fp8, row.offload, bool(row.mlp_chunk))
        for row in ROWS
    }
    assert {
        ("H100", True, "local", "off", "off", False),
        ("H100", False, "te", "off", "off", False),
        ("H100", False, "te", "current", "off", False),
        ("H100", False, "te", "blockwise", "off", False),
        ("H200", True, "te", "off", "off", False),
        ("H200", True, "te", "current", "off", False),
        ("H200", False, "local", "off", "on", True),
    } <= kinds
    # Of another model than the rows that the formulas were looked at with.
    assert [row.model for row in ROWS].count("smollm2") == 2
    assert {row.tp_chunks for row in ROWS} == {1, 2, 4, 8} and len(ROWS) == 66


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.where} {row.words}")
def test_memory_is_within_two_percent_of_what_gpus_measured(row: Measured) -> None:
    """The aim was five. Nearly all is low by what cuBLAS works in, 0.06 GiB, which is in the
    guess of overhead.
    """
    assert row.gib is not None
    assert -0.02 <= row.planned_gib() / row.gib - 1 <= 0.002


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.where} {row.words}")
def test_what_ran_on_a_card_is_never_said_not_to_fit(row: Measured) -> None:
    """Not even on a card of just that peak."""
    if row.state != "all":
        return  # it had no optimizer, and what has one may not fit
    plan = row.planned(row.tight_machine)
    assert plan.may_fit and plan.verdict.startswith("may fit")
