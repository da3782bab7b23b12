"""What `pack` makes of the stages of a run: one continues the data of the one before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import DataError
from alia_ctx.workflow.continued import earlier_stages
from alia_ctx.workflow.stores import open_stores
from tests.data.packing.plans import order_problems, trained
from tests.small_run import VOCABULARY, alia, write_run

Run = Any  # a function (overrides) -> RunConfig


@pytest.fixture
def small_run(tmp_path: Path) -> Run:
    config = write_run(tmp_path)
    return lambda *overrides: load_run(config, [*overrides])


def test_the_second_stage_continues_the_data_of_the_first(small_run: Run) -> None:
    run: RunConfig = small_run()
    short, long = workflow.pack(run, "short"), workflow.pack(run, "long")
    assert not trained(short) & trained(long)
    assert order_problems([short, long], open_stores(run)) == []
    assert long.identity["seen"] == [["short", short.fingerprint]]
    seen = long.stats["sources"]["text"]["seen_tokens"]
    assert seen == short.stats["tokens"]
    assert workflow.open_plan(run, "long").fingerprint == long.fingerprint


def test_restart_is_explicit(small_run: Run) -> None:
    run = small_run("stages.long.pack.data=restart")
    short, long = workflow.pack(run, "short"), workflow.pack(run, "long")
    assert trained(short) & trained(long) and long.identity["seen"] == []
    with pytest.raises(DataError, match=r"pack\.data: restart keeps such a plan"):
        workflow.open_plan(small_run(), "long")
    workflow.pack(small_run(), "long", overwrite=True)
    with pytest.raises(DataError, match=r"of short .* in the plan, of no stage now"):
        workflow.open_plan(run, "long")


def test_the_chain_ends_at_a_stage_that_begins_anew(small_run: Run) -> None:
    run = small_run()
    assert (
        earlier_stages(run, "long") == ["short"] and earlier_stages(run, "short") == []
    )
    assert earlier_stages(small_run("stages.long.pack.data=restart"), "long") == []


def test_the_plan_of_the_stage_before_is_made_where_it_is_missing(
    small_run: Run,
) -> None:
    run = small_run()
    long = workflow.pack(run, "long")
    directory = Path(run.output) / "plans" / "short"
    assert json.loads((directory / "plan.json").read_text())["stats"]["rows"] == 96
    shutil.rmtree(directory)  # after use, for space: the later plan is still good
    assert workflow.open_plan(run, "long").fingerprint == long.fingerprint
    assert workflow.pack(run, "long").fingerprint == long.fingerprint


def test_raising_tokens_extends_the_plan(small_run: Run) -> None:
    run, more = small_run(), small_run("stages.short.tokens=8192")
    short, long = workflow.pack(run, "short"), workflow.pack(run, "long")
    with pytest.raises(DataError, match="rows: 96 in the plan, 128 now"):
        workflow.open_plan(more, "short")
    grown = workflow.pack(more, "short")
    assert grown.extends(short.fingerprint) and len(grown) == 128
    assert trained(short) < trained(grown)
    # What followed the shorter stage must follow the longer one now.
    with pytest.raises(DataError, match="continues the data of short"):
        workflow.open_plan(more, "long")
    again = workflow.pack(more, "long", overwrite=True)
    assert again.fingerprint != long.fingerprint
    assert not trained(grown) & trained(again)


def test_a_stage_that_continues_another_grows_too(small_run: Run) -> None:
    run, more = small_run(), small_run("stages.long.tokens=9216")
    short, long = workflow.pack(run, "short"), workflow.pack(run, "long")
    grown = workflow.pack(more, "long")
    assert grown.extends(long.fingerprint) and len(grown) > len(long)
    assert order_problems([short, grown], open_stores(run)) == []
    assert workflow.open_plan(more, "long").fingerprint == grown.fingerprint


def test_a_damaged_plan_of_the_stage_before_is_named(small_run: Run) -> None:
    run = small_run()
    workflow.pack(run, "short")
    file = Path(run.output) / "plans" / "short" / "piece_documents.npy"
    raw = bytearray(file.read_bytes())
    raw[-8] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DataError, match=r"short/piece_documents\.npy: is not what"):
        workflow.pack(run, "long")


def test_inspecting_counts_what_is_held_out_text(
    tmp_path: Path, small_run: Run
) -> None:
    chance = np.random.default_rng(0)
    documents = [chance.integers(0, VOCABULARY, 300) for _ in range(40)]
    text = write_store(tmp_path / "text", documents, VOCABULARY)
    held_out = [text.document(7), text.document(9)[3:]]
    write_store(tmp_path / "held_out", [np.asarray(t) for t in held_out], VOCABULARY)
    config = str(tmp_path / "run.yaml")
    shown = alia("pack", config, "--stage", "short", "--inspect")
    table = shown.stdout.partition("in the held-out text (2 of its")[2]
    rows = [line.split("│")[1:-1] for line in table.splitlines()[4:6]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["text", "1", "1", f"document 7 of {tmp_path / 'text'}"],
        ["", "", "", f"document 9 of {tmp_path / 'text'}"],
    ]
    run = small_run("stages.short.pack.drop_contaminated=true")
    plan = workflow.pack(run, "short", overwrite=True)
    assert not {7, 9} & {document for document, _ in trained(plan)}
    workflow.open_plan(run, "short")
    write_store(tmp_path / "held_out", [np.arange(90)], VOCABULARY)
    with pytest.raises(DataError, match=r"held_out: .* in the plan, .* now"):
        workflow.open_plan(run, "short")


def test_a_run_that_evaluates_on_its_training_text_is_refused(
    tmp_path: Path, small_run: Run
) -> None:
    for suffix in (".bin", ".idx"):
        shutil.copy(tmp_path / f"text{suffix}", tmp_path / f"held_out{suffix}")
    with pytest.raises(DataError, match="has the same tokens as source text"):
        workflow.pack(small_run(), "short")
