"""Conversations that a stage holds out: kept as they are, and from all stages of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import PackPlan, draw_held_out, read_statement
from alia_ctx.data.tokens import TokenStore, write_store
from alia_ctx.data.tokens.said import CALLS, SAYS
from alia_ctx.errors import AliaError, DataError
from alia_ctx.train.stage_identity import PLAN
from alia_ctx.workflow import conversations
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.mixture import mixture_of
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


def test_the_plan_tells_of_which_sources_pack_holds_out(tmp_path: Path) -> None:
    path = write_talks(tmp_path)
    config = yaml.safe_load(path.read_text())
    write_store(tmp_path / "text", [np.arange(4, 30)] * 90, VOCABULARY)
    config["data"]["sources"]["text"] = {"store": str(tmp_path / "text")}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    run = load_run(path)
    stage = run.stage("calls")
    drawn = draw_held_out(open_stores(run, "calls"), stage.pack, run.seed)
    sizes = {name: numbers.size for name, numbers in drawn.items()}
    assert mixture_of(run, "calls").held_out_by_source == {**sizes, "text": 0}


def check(run: RunConfig, name: str) -> None:
    workflow.check_all(run, "run.yaml", [name])


def plan(run: RunConfig, name: str) -> None:
    workflow.plan_stages(run, workflow.PlanQuestion([name]))


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


@pytest.mark.parametrize("command", [workflow.pack, check])
def test_calls_that_are_to_choose_the_best_and_are_not_there(
    command: Callable[[RunConfig, str], object], tmp_path: Path
) -> None:
    path = write_talks(tmp_path)
    best = ["evaluation.every_updates=1", "evaluation.best={metric: calls_exact}"]
    run = load_run(path, best)
    with pytest.raises(
        AliaError, match="none of the 10 conversations that stage calls"
    ):
        command(run, "calls")
    assert not (tmp_path / "out" / "plans" / "calls").exists()
    command(
        load_run(path, [*best, "evaluation.best.metric=conversation_loss"]), "calls"
    )
    for name in COUNTS:  # as stores that the template has marked
        size = sum(TokenStore(tmp_path / name).lengths.tolist())
        said = np.full(size, SAYS | CALLS, np.uint8)
        (tmp_path / f"{name}.said").write_bytes(said.tobytes())
    command(run, "calls")


def test_check_says_what_pack_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_talks(tmp_path)
    none = ["stages.calls.pack.held_out_instances=0"]
    workflow.pack(load_run(path, none), "pre")
    run = load_run(path)
    with pytest.raises(DataError, match="the plan of stage pre has") as packed:
        workflow.pack(run, "calls")
    for stages in ([], ["calls"]):
        with pytest.raises(AliaError, match="the plan of stage pre has") as checked:
            workflow.check_all(run, path, stages)
        assert str(packed.value) in str(checked.value)
    # A plan that is gone after use is what the stage's checkpoint states.
    places = run_directory(run)
    stated = read_statement(places.plan("pre")).as_trained()
    shutil.move(places.plan("pre"), tmp_path / "gone")
    manifest = SimpleNamespace(extra={PLAN: stated}, ledger=())
    with monkeypatch.context() as patched:
        latest = {places.checkpoints("pre"): Path("update-1")}
        checkpoints = SimpleNamespace(
            latest=latest.get, read_manifest=lambda _: manifest
        )
        patched.setattr(conversations, "checkpoint", checkpoints)
        with pytest.raises(DataError, match="update-1: the plan of stage pre has"):
            conversations.require_kept_out(run, "calls")
    shutil.move(tmp_path / "gone", places.plan("pre"))
    workflow.pack(run, "pre", overwrite=True)
    workflow.check_all(run, path)


def test_a_warm_up_that_does_not_end(tmp_path: Path) -> None:
    path = write_talks(tmp_path)  # 171 conversations at most: 6 updates
    cosine = ["stages.calls.schedule.type=cosine", "stages.calls.schedule.warmup=6"]
    run = load_run(path, cosine)
    told = r"stages\.calls\.schedule\.warmup=6.*: is not below the stage's 6 updates"
    for command in (workflow.pack, check, plan):
        with pytest.raises(AliaError, match=told):
            command(run, "calls")
    more = load_run(path, [*cosine, "stages.calls.epochs=2"])
    workflow.pack(more, "calls")
    check(more, "calls")
    # The plan is longer than its settings would have it now, and shorter.
    with pytest.raises(AliaError, match="6 updates"):
        check(run, "calls")
    all_of_one = [
        "stages.calls.update_instances=200",
        "stages.calls.schedule.warmup=0.1",
    ]
    with pytest.raises(AliaError, match="comes to all of the stage's 1 update;"):
        check(load_run(path, [cosine[0], *all_of_one]), "calls")
