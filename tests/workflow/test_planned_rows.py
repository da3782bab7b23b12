"""A stage is planned by the rows that its pack plan has: those of conversations are as long
as their update needs, which may be far less than the context.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_plan, load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.planner import StagePlan, plan_stage, plan_table
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.mixture import sizes_of
from alia_ctx.workflow.planned import (
    PackedStage,
    packed_stage,
    planned_stage,
    planning_sizes,
    room_on_a_gpu,
)
from alia_ctx.workflow.planning import PlanQuestion, plan_document, simulated_update
from tests.paths import ROOT
from tests.planner.test_planner import shown
from tests.small_run import write_run
from tests.train.test_conversations import write_talk

CONTEXT = 16_384
STAGE = {"context": CONTEXT, "epochs": 1, "update_instances": 64}
PACK = {"policy": "best_fit", "long_docs": "drop", "min_rows": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_talk(tmp_path, **STAGE, pack=PACK)


def rows_of(run: RunConfig) -> tuple[list[int], list[int], list[int]]:
    """(tokens of each row, query-key pairs of each row, rows of each update) of the plan, as
    the trainer reads it.
    """
    plan = workflow.open_plan(run, "short")
    rows = [plan.row(index) for index in range(len(plan))]
    pairs = [
        sum(
            n * (n + 1) // 2
            for n in [*np.diff(r.doc_offsets).tolist(), r.length - r.real_tokens]
        )
        for r in rows
    ]
    updates = [len(plan.rows_of_update(k)) for k in range(plan.updates)]
    return [row.length for row in rows], pairs, updates


def with_rows_of(run: RunConfig, context: int, rows: int, updates: int) -> StagePlan:
    """The stage, if its context were `context`: one document a row."""
    stage, update = run.stage("short"), rows * context
    return plan_stage(
        *(run.model, stage.rope, context, stage.layout, 1),
        *(updates * update, update, stage.recompute, "fp32", run.cluster),
        **{
            "loss_chunk_tokens": 64,
            "overlap": planned_stage(run, "short").work.overlap,
        },
    )


def test_time_is_that_of_the_mean_row_and_memory_that_of_the_longest(
    path: Path,
) -> None:
    run = load_run(path)
    before = planned_stage(run, "short")
    assert before.work.row_tokens == CONTEXT and before.masked_share is None
    workflow.pack(run, "short")
    lengths, pairs, updates = rows_of(run)
    assert set(updates) == {2} and max(lengths) < CONTEXT / 8
    plan = planned_stage(run, "short")
    assert (plan.work.updates, plan.work.rows_per_update) == (len(updates), 2)
    assert plan.work.context == CONTEXT, "layouts and RoPE are those of the context"
    mean = round(np.mean(lengths))
    short = with_rows_of(run, mean, 2, len(updates))
    model = run.model
    attention = model.attention_flops([1]) * np.mean(pairs) / mean
    assert plan.flops_per_token == pytest.approx(
        (model.linear_flops_per_token(), float(attention))
    )
    # Documents attend to less than one document a row would.
    assert plan.timing.compute < short.timing.compute < before.timing.compute / 8
    assert plan.masked_share == pytest.approx(np.mean(pairs) / (mean * (mean + 1) / 2))
    longest = with_rows_of(run, max(lengths), 2, len(updates))
    assert plan.fullest.items == longest.fullest.items
    assert plan.fullest.total < before.fullest.total
    assert plan.reach == before.reach


def test_what_is_said_of_it(path: Path) -> None:
    run = load_run(path)
    workflow.pack(run, "short")
    lengths, _, updates = rows_of(run)
    plan = planned_stage(run, "short")
    words, remedy = room_on_a_gpu(run, "short", plan.fullest.total + 0.01)
    assert words.startswith(f"fits: {plan.fullest.total:.1f} of") and not remedy
    table = shown(plan_table(plan))
    assert f"2 rows x {plan.work.row_tokens:,}" in table
    assert f"means of the pack plan; its longest row has {max(lengths):,}" in table
    assert "asked for" not in table
    said = plan_document(run, PlanQuestion(("short",)))["stages"]["short"]["plan"]
    assert said["seconds"] == pytest.approx(plan.seconds)
    assert said["row_tokens"] == plan.work.row_tokens
    assert (said["updates"], said["rows_per_update"]) == (len(updates), 2)


def test_the_first_update_is_drawn_with_its_own_rows(path: Path) -> None:
    run = load_run(path)
    whole = simulated_update(run, "short").seconds
    workflow.pack(run, "short")
    lengths, pairs, _ = rows_of(run)
    drawn = simulated_update(run, "short").seconds
    assert drawn < whole / 4
    flops = 2 * run.model.linear_flops_per_token() * lengths[0]
    flops += run.model.attention_flops([1]) * sum(pairs[:2])
    least = flops / run.cluster.peak_flops("fp32")
    assert least < drawn < 5 * least, "efficiencies are 0.4 to 0.5"


@pytest.mark.parametrize("changed", ["stages.short.update_instances=16", "context"])
def test_a_plan_of_something_else_is_not_taken(path: Path, changed: str) -> None:
    workflow.pack(load_run(path), "short")
    if changed == "context":
        changed = f"stages.short.context={CONTEXT // 2}"
    run = load_run(path, [changed])
    plan = planned_stage(run, "short")
    assert plan.work.packed is None
    assert plan.work.row_tokens == run.stage("short").context


@pytest.mark.parametrize("name", ["row_offsets", "update_offsets"])
def test_a_damaged_plan_is_none(path: Path, name: str) -> None:
    """The bits are not verified here, and who asks only wants an estimate."""
    run = load_run(path)
    before = planned_stage(run, "short")
    workflow.pack(run, "short")
    (file,) = run_directory(run).plan("short").parent.rglob(f"{name}.npy")
    data = file.read_bytes()
    file.write_bytes(data[:128] + b"\xff" * (len(data) - 128))
    assert planned_stage(run, "short") == before


def test_less_than_one_update_of_an_epoch_is_one(path: Path) -> None:
    """Of a plan of one update in three epochs, where one epoch is asked for."""
    one = "stages.short.update_instances=100000"
    workflow.pack(load_run(path, [one, "stages.short.epochs=3"]), "short")
    run = load_run(path, [one])
    packed = packed_stage(run, "short")
    assert packed is not None and packed.epochs == 3
    with_one_update = PackedStage(
        packed.pairs, packed.lengths, packed.update_offsets[[0, -1]], packed.epochs
    )
    tokens, in_update = planning_sizes(run, "short", with_one_update)
    assert tokens == in_update > 0


def test_epochs_that_are_not_packed_yet_are_as_those_that_are(path: Path) -> None:
    run = load_run(path)
    workflow.pack(run, "short")
    one, two = (
        planned_stage(load_run(path, [f"stages.short.epochs={epochs}"]), "short")
        for epochs in (1, 2)
    )
    assert two.work.updates == 2 * one.work.updates
    assert two.timing == one.timing
    assert two.seconds == pytest.approx(2 * one.seconds)


def test_rows_of_tokens_are_the_context_and_their_documents_count(
    tmp_path: Path,
) -> None:
    run = load_run(write_run(tmp_path))
    before: dict[str, Any] = {name: planned_stage(run, name) for name in run.stages}
    workflow.pack(run, "short")
    plan, was = planned_stage(run, "short"), before["short"]
    assert (plan.work.row_tokens, plan.work.rows_per_update) == (64, 8)
    assert (plan.work.updates, plan.work.tokens) == (was.work.updates, was.work.tokens)
    assert plan.fullest == was.fullest
    assert plan.masked_share is not None and plan.masked_share < 1
    assert plan.timing.compute < was.timing.compute
    assert "asked for" in shown(plan_table(plan))
    assert planned_stage(run, "long") == before["long"]


def test_what_the_shipped_configuration_says_of_memory_is_what_the_planner_finds() -> (
    None
):
    file = ROOT / "configs" / "runs" / "alia-40b.yaml"
    said = re.findall(
        r"^  (\w+):$|`alia-ctx plan`: ([\d.]+) of 64 GiB",
        file.read_text(),
        re.MULTILINE,
    )
    run, _ = load_plan(file)
    stage, told = "", 0
    for name, gib in said:
        if gib:
            total = planned_stage(run, stage).fullest.total
            assert f"{total:.{len(gib.partition('.')[2])}f}" == gib, stage
            told += 1
        stage = name or stage
    assert told == 2


def test_fill_is_planned_and_of_no_use(path: Path) -> None:
    """The time is that of all that is computed, MFU that of the documents, as logged."""
    run = load_run(path)
    workflow.pack(run, "short")
    planned, plan = planned_stage(run, "short"), workflow.open_plan(run, "short")
    rows = [plan.row(index) for index in range(len(plan))]
    real = sum(row.real_tokens for row in rows)
    assert real < sum(row.length for row in rows)
    model = run.model
    useful = model.linear_flops_per_token() * real + sum(
        model.attention_flops(np.diff(row.doc_offsets).tolist()) for row in rows
    )
    work = planned.work.in_mean_rows
    an_update = useful / len(rows) * work.rows_per_update
    peak = work.world_size * planned.cluster.peak_flops(work.precision)
    # A mean row is of whole tokens.
    assert planned.timing.mfu == pytest.approx(
        an_update / planned.timing.total / peak, rel=1e-2
    )
    assert planned.seconds_at_mfu(0.5) == pytest.approx(
        an_update / peak / 0.5, rel=1e-2
    )


def test_an_update_that_is_not_packed_has_room_for_its_tokens(tmp_path: Path) -> None:
    """Planned in whole rows that hold its mean, not in fewer."""
    path = write_talk(tmp_path, context=256, epochs=1, update_instances=64, pack=PACK)
    run = load_run(path)
    workflow.tokenize(run)
    tokens, in_update, text = sizes_of(run, "short")
    mean = int(re.findall(r"an update has ([\d,]+) tokens", text)[0].replace(",", ""))
    assert mean % 256 and mean <= in_update < mean + 256
    assert in_update % 256 == 0 and tokens % in_update == 0
