"""Whether a checkpoint is one of the stage that the configuration describes: what the
configuration's own check does not reach, or releases before did not record.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.load import load_run
from alia_ctx.identity import IdentityError
from alia_ctx.train.stage_identity import model_differences, require_same_stage
from alia_ctx.train.stage_state import StageState
from alia_ctx.train.task import StageTask
from alia_ctx.workflow.chain import stage_task
from tests.small_run import write_run


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> StageTask:
    run = load_run(write_run(tmp_path_factory.mktemp("run")))
    return stage_task(run, "short")


def manifest(task: StageTask, updates: int, **changes: Any) -> Manifest:
    """Of a checkpoint of the stage after `updates`."""
    state = StageState.at_start(task.name, task.stage, "plan")
    ledger = dataclasses.replace(state.ledger, updates=updates, rows=8 * updates)
    state = dataclasses.replace(state, ledger=ledger)
    return dataclasses.replace(state.manifest(task.model, task.config), **changes)


def refusal(task: StageTask, then: Manifest) -> str:
    with pytest.raises(IdentityError) as caught:
        require_same_stage(task, Path("update-1"), then)
    return str(caught.value)


def test_a_model_is_compared_in_the_precision_of_files(task: StageTask) -> None:
    read = dataclasses.replace(task.model, rms_norm_eps=9.999999747378752e-06)
    assert (
        model_differences(read, dataclasses.replace(task.model, rms_norm_eps=1e-5))
        == []
    )
    other = dataclasses.replace(task.model, rms_norm_eps=1e-6)
    assert model_differences(read, other) == [
        "model.rms_norm_eps: 1e-05 there, 1e-06 now"
    ]
    assert require_same_stage(task, Path("update-1"), manifest(task, 1)) == []
    refused = refusal(task, manifest(task, 1, model=other))
    assert "stage short was begun with other settings" in refused
    assert "model.rms_norm_eps: 1e-06 there, 1e-05 now" in refused


def test_what_an_older_release_did_not_have_had_its_default(task: StageTask) -> None:
    config = {**task.config, "optimizer": dict(task.config["optimizer"])}
    stages = {name: dict(stage) for name, stage in config["stages"].items()}
    del config["optimizer"]["clip_grad"], stages["short"]["optimizer_state"]
    old = manifest(task, 1, config={**config, "stages": stages})
    assert require_same_stage(task, Path("update-1"), old) == []
    now = {**task.config, "optimizer": {**task.config["optimizer"], "clip_grad": 2.0}}
    changed = dataclasses.replace(task, config=now)
    assert require_same_stage(changed, Path("update-1"), old) == [
        "optimizer.clip_grad: 1.0 there, 2.0 now"
    ]
    finished = dataclasses.replace(old, update=12)
    assert "optimizer.clip_grad: 1.0 there, 2.0 now" in refusal(changed, finished)


def test_a_setting_that_comes_later_decides_until_someone_says_otherwise(
    task: StageTask,
) -> None:
    stages = {**task.config["stages"]}
    stages["short"] = {**stages["short"], "annealing": "cosine"}
    later = dataclasses.replace(task, config={**task.config, "stages": stages})
    refused = refusal(later, manifest(task, 1))
    assert "stages.short.annealing: nothing there, cosine now" in refused


def test_a_checkpoint_without_configuration_is_held_to_its_ledger(
    task: StageTask,
) -> None:
    bare = manifest(task, 1, config={})
    assert require_same_stage(task, Path("update-1"), bare) == []
    stage = dataclasses.replace(task.stage, learning_rate=0.5)
    refused = refusal(dataclasses.replace(task, stage=stage), bare)
    assert "stages.short.learning_rate: 0.003 there, 0.5 now" in refused


def test_a_stage_of_the_run_before_binds_none_of_this_one(task: StageTask) -> None:
    """The base may come from a run whose stages were called like later ones of this run."""
    begun = manifest(task, 1)
    before = dataclasses.replace(begun.ledger[0], stage="long")
    begun = dataclasses.replace(begun, ledger=(before, *begun.ledger))
    stages = {name: dict(stage) for name, stage in task.config["stages"].items()}
    stages["long"]["learning_rate"] = 0.25
    later = dataclasses.replace(task, config={**task.config, "stages": stages})
    assert require_same_stage(later, Path("update-1"), begun) == []


def test_the_stages_that_a_stage_came_from_bind_it(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path))
    assert run.stage("long").init_from == "short"
    task = stage_task(run, "long")
    begun = manifest(task, 1)
    before = StageState.at_start("short", run.stage("short"), "plan").ledger
    begun = dataclasses.replace(begun, ledger=(before, *begun.ledger), parent="gone")
    stages = {name: dict(stage) for name, stage in task.config["stages"].items()}
    stages["short"]["learning_rate"] = 0.25
    later = dataclasses.replace(
        task,
        config={**task.config, "stages": stages},
        origin=lambda: tmp_path / "gone",
        origin_checkpoints=None,
    )
    assert "stages.short.learning_rate: 0.003 there, 0.25 now" in refusal(later, begun)


def test_an_origin_that_is_gone_is_no_obstacle_and_another_is(
    task: StageTask, tmp_path: Path
) -> None:
    begun = manifest(task, 1, parent=str(tmp_path / "gone"))
    gone = dataclasses.replace(task, origin=lambda: tmp_path / "gone")
    assert require_same_stage(gone, Path("update-1"), begun) == []
    refused = refusal(task, begun)  # whose stage starts from random weights
    assert f"stages.short.init_from: {tmp_path / 'gone'} there, random now" in refused
