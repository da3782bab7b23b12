"""How often text is read, as `plan` and `check` say it, beside what `pack` makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.tokens.store import write_store
from alia_ctx.workflow.epochs import epoch_notes, epochs_in_words, epochs_of
from alia_ctx.workflow.packed_notes import packed_notes
from tests.small_run import VOCABULARY, write_run

_SHORT, _LONG = "web", "books"
_BUCKETS = [{"min_tokens": 256, "share": 0.9}]


def _run(folder: Path, pack: dict[str, Any], *, one: bool = False) -> RunConfig:
    """A run of a stage `short` over many short documents and few long ones, in two sources
    or, with `one`, in one; and of `long`, which goes on from it.
    """
    path = write_run(folder, context=256, tokens=256 * 4 * 30, update_tokens=1024)
    chance = np.random.default_rng(1)
    short = [chance.integers(4, VOCABULARY, n) for n in chance.integers(20, 60, 1000)]
    long = [chance.integers(4, VOCABULARY, 500) for _ in range(8)]
    stores = {_SHORT: [*short, *long]} if one else {_SHORT: short, _LONG: long}
    for name, documents in stores.items():
        write_store(folder / name, documents, VOCABULARY)
    written = yaml.safe_load(path.read_text())
    written["data"]["sources"] = {
        name: {"inputs": [], "store": str(folder / name)} for name in stores
    }
    written["stages"]["short"]["pack"] = {
        "policy": "best_fit",
        "long_docs": "split",
        **pack,
    }
    path.write_text(yaml.safe_dump(written))
    return load_run(path, [])


@pytest.mark.parametrize(
    "pack",
    [
        {},
        {"length_buckets": _BUCKETS},
        {"length_buckets": [{"min_tokens": 40, "share": 0.2}]},
        {"weights": {_SHORT: 0.3, _LONG: 0.7}},
        {"length_buckets": _BUCKETS, "weights": {_SHORT: 0.1, _LONG: 0.9}},
        {"length_buckets": _BUCKETS, "short_docs": "apart"},
        {"long_docs": "drop", "weights": {_SHORT: 1.0, _LONG: 0.0}},
        {"sources": [_LONG]},
    ],
)
def test_epochs_are_those_of_the_blend_and_then_of_the_plan(
    tmp_path: Path, pack: dict[str, Any]
) -> None:
    run = _run(tmp_path, pack)
    before = epochs_of(run, "short")
    stats = workflow.pack(run, "short").stats
    packed = {n: of["epochs"] for n, of in stats["sources"].items() if of["epochs"]}
    assert before.keys() == packed.keys()
    for name, times in packed.items():
        # rows are not all full, and documents are drawn whole
        assert before[name] == pytest.approx(times, rel=0.15)
    assert epochs_of(run, "short") == pytest.approx(packed)


def test_long_text_of_one_source_that_is_read_too_often_is_told(tmp_path: Path) -> None:
    run = _run(tmp_path, {"length_buckets": _BUCKETS}, one=True)
    for _ in range(2):  # without a plan, and with it
        assert epochs_of(run, "short")[_SHORT] < 1
        words = epochs_in_words(run, "short")
        assert "times (documents of 256 and more tokens 6." in words
        [note] = epoch_notes(run, ["short"])
        assert words in note and "beyond 4 times" in note
        workflow.pack(run, "short")


@pytest.mark.parametrize("data", ["continue", "restart"])
def test_stages_before_count_whatever_the_data_begins_with(
    tmp_path: Path, data: str
) -> None:
    run = _run(tmp_path, {})
    run = load_run(tmp_path / "run.yaml", [f"stages.long.pack.data={data}"])
    estimated = epochs_of(run, "long")[_SHORT]
    for stage in ("short", "long"):
        workflow.pack(run, stage)
    plans = [workflow.open_plan(run, stage).stats for stage in ("short", "long")]
    read = sum(plan["sources"][_SHORT]["trained_tokens"] for plan in plans)
    there = int(workflow.open_store(run, _SHORT).lengths.sum())
    assert epochs_of(run, "long")[_SHORT] == pytest.approx(read / there)
    assert estimated == pytest.approx(read / there, rel=0.05)


def test_a_plan_of_other_settings_is_not_believed(tmp_path: Path) -> None:
    run = _run(tmp_path, {})
    workflow.pack(run, "short")
    other = load_run(tmp_path / "run.yaml", ["stages.short.tokens=61440"])
    assert epochs_of(other, "short")[_SHORT] == pytest.approx(
        2 * epochs_of(run, "short")[_SHORT], rel=0.05
    )


def test_shares_of_lengths_that_are_missed_are_told(tmp_path: Path) -> None:
    few = {"length_buckets": [{"min_tokens": 256, "share": 0.05}]}
    run = _run(tmp_path, few)
    run = load_run(tmp_path / "run.yaml", ["stages.short.tokens=1024"])
    [note] = packed_notes("short", workflow.pack(run, "short"))
    assert "stages.short.pack.length_buckets are not met" in note
    assert "256+ tokens" in note and "(asked for: 5.0%)" in note


def test_shares_of_lengths_that_are_met_are_not(tmp_path: Path) -> None:
    run = _run(tmp_path, {"length_buckets": _BUCKETS})
    plan = workflow.pack(run, "short")
    assert not [note for note in packed_notes("short", plan) if "not met" in note]
