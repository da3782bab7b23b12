"""Conversations that a stage holds out: kept as they are, and from all stages of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.packing import PackPlan, draw_held_out
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import DataError
from alia_ctx.workflow.stores import open_stores
from tests.small_run import VOCABULARY, write_run

COUNTS = {"one": 120, "two": 61}


def write_talks(folder: Path, **stages: Any) -> Path:
    """A run with the stage `pre` of tokens, and `calls` of conversations behind it, both
    of the same two sources; and more stages as `calls` is, with changes.
    """
    path = write_run(folder)
    generator = np.random.default_rng(3)
    for name, count in COUNTS.items():
        lengths = generator.integers(8, 60, count).tolist()
        documents = [generator.integers(4, VOCABULARY, n) for n in lengths]
        weights = [np.arange(n) >= n // 2 for n in lengths]
        write_store(folder / name, documents, VOCABULARY, weights)
    config = yaml.safe_load(path.read_text())
    config["data"]["sources"] = {n: {"store": str(folder / n)} for n in COUNTS}
    pre = config["stages"]["short"]
    calls = {
        **{key: pre[key] for key in ("rope", "learning_rate")},
        "init_from": "pre",
        "context": 128,
        "epochs": 1,
        "update_instances": 32,
        "pack": {"policy": "best_fit", "long_docs": "drop", "held_out_instances": 10},
    }
    config["stages"] = {"pre": pre, "calls": calls}
    for name, changes in stages.items():
        config["stages"][name] = {**calls, "init_from": "calls", **changes}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def files(prefix: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in prefix.parent.iterdir()}


def test_a_refused_plan_leaves_what_is_held_out(tmp_path: Path) -> None:
    path = write_talks(tmp_path)
    workflow.pack(load_run(path), "calls")
    held_out = tmp_path / "out" / "held_out" / "calls"
    before = files(held_out)
    assert {"calls.bin", "calls.idx", "calls.weights"} <= set(before)
    more = load_run(path, ["stages.calls.pack.held_out_instances=12"])
    with pytest.raises(DataError, match="overwriting"):
        workflow.pack(more, "calls")
    assert files(held_out) == before
    workflow.open_plan(load_run(path), "calls")
    workflow.pack(more, "calls", overwrite=True)
    assert set(files(held_out)) == set(before) and files(held_out) != before
    workflow.open_plan(more, "calls")


def test_a_first_plan_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    path = write_talks(tmp_path)
    cut = ["stages.calls.context=16", "stages.calls.pack.long_docs=split"]
    with pytest.raises(DataError, match="would be cut"):
        workflow.pack(load_run(path, cut), "calls")
    held_out = tmp_path / "out" / "held_out"
    assert not held_out.is_dir() or not [*held_out.iterdir()]


def documents_of(plan: PackPlan) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {name: set() for name in plan.sources}
    for row in map(plan.row, range(len(plan))):
        for source, number in zip(row.sources, row.doc_ids, strict=True):
            found[plan.sources[source]].add(int(number))
    return found


def test_no_stage_trains_on_what_another_holds_out(tmp_path: Path) -> None:
    more = {"policy": "best_fit", "long_docs": "drop", "held_out_instances": 30}
    path = write_talks(
        tmp_path, more={"pack": {**more, "sources": ["one"]}}, rest={"pack": {**more}}
    )
    run = load_run(path)
    held_out: dict[str, set[int]] = {name: set() for name in COUNTS}
    for name in ("calls", "more", "rest"):
        drawn = draw_held_out(open_stores(run, name), run.stage(name).pack, run.seed)
        assert sum(numbers.size for numbers in drawn.values()) in (10, 30)
        for source, numbers in drawn.items():
            held_out[source] |= set(numbers.tolist())
    for name in run.stages:
        trained = documents_of(workflow.pack(run, name))
        assert all(trained.values())
        for source, numbers in trained.items():
            assert not numbers & held_out[source], name
        workflow.open_plan(run, name)
    everything = {name: set(range(count)) for name, count in COUNTS.items()}
    kept = {name: everything[name] - held_out[name] for name in COUNTS}
    assert documents_of(workflow.open_plan(run, "pre")) == kept  # nothing else is gone


def test_a_stage_that_has_seen_what_another_holds_out_is_refused(
    tmp_path: Path,
) -> None:
    path = write_talks(tmp_path)
    none = ["stages.calls.pack.held_out_instances=0"]
    workflow.pack(load_run(path, none), "pre")
    workflow.pack(load_run(path, none), "calls")
    run = load_run(path)
    with pytest.raises(DataError, match=r"the plan of stage pre has .*calls holds out"):
        workflow.pack(run, "calls", overwrite=True)
    with pytest.raises(DataError, match="held_out"):
        workflow.pack(run, "pre")
    workflow.pack(run, "pre", overwrite=True)
    workflow.pack(run, "calls", overwrite=True)


def test_what_is_held_out_of_sources_that_are_not_there(tmp_path: Path) -> None:
    path = write_talks(tmp_path)
    (tmp_path / "two.txt").write_text("a book")
    two = [f"data.sources.two={{inputs: [{tmp_path}/two.txt]}}"]
    run = load_run(path, [*two, "stages.pre.pack.sources=[one]"])
    with pytest.raises(DataError, match=r"stage calls holds conversations out.*two"):
        workflow.pack(run, "pre")
