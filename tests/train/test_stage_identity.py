"""Whether a checkpoint is one of the stage that the configuration describes: what the
configuration's own check does not reach, or releases before did not record.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.load import load_run
from alia_ctx.files import write_json
from alia_ctx.identity import IdentityError
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.stage_identity import (
    checkpoint_statement,
    model_differences,
    require_same_stage,
)
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


def imported(path: Path, *files: dict[str, Any]) -> Manifest:
    """A checkpoint in `path` as far as its manifest says, with files of tensors."""
    made = Manifest(
        "import",
        0,
        ModelSpec(2, 32, 64, 4, 2, 8, 200),
        RopeSpec("default", 10_000),
        64,
        files={f"state/__{n}_0.distcp": entry for n, entry in enumerate(files)},
    )
    path.mkdir(exist_ok=True)
    write_json(path / "manifest.json", made.to_json())
    return made


def test_a_base_is_compared_by_its_values_and_an_older_one_by_its_files(
    task: StageTask, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    one = {"bytes": 8, "xxh3_128": "a", "content": "0000000000000007"}
    two = (
        {"bytes": 4, "xxh3_128": "b", "content": "000000000000000c"},
        {"bytes": 4, "xxh3_128": "c", "content": "fffffffffffffffb"},
    )
    older = {"bytes": 8, "xxh3_128": "a"}
    now = dataclasses.replace(task, origin=lambda: base)

    def begun(*files: dict[str, Any]) -> Manifest:
        started = checkpoint_statement(imported(base, *files))
        return manifest(task, 1, parent=str(base), extra={"started_from": started})

    for then, here in (
        ([one], two),
        (two, [one]),
        ([older], [older]),
        ([older], [one]),
    ):
        from_there = begun(*then)
        imported(base, *here)
        assert require_same_stage(now, Path("update-1"), from_there) == []
    other = {**one, "content": "0000000000000008"}
    for then, here in (([one], [other]), ([older], [{**other, "xxh3_128": "d"}])):
        from_there = begun(*then)
        imported(base, *here)
        assert "stages.short.init_from.weights: " in refusal(now, from_there)


GONE = "stages.{}.init_from: {} there, {} now"


def started_from(folder: Path, **stages: str) -> Path:
    """The small run in `folder`, whose stages start from what is named."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    if not path.is_file():
        write_run(folder)
    document = yaml.safe_load(path.read_text())
    for name, origin in stages.items():
        stage = document["stages"].setdefault(name, dict(document["stages"]["short"]))
        stage["init_from"] = origin
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def task_of(path: Path, name: str, *overrides: str) -> StageTask:
    """Of a stage that was begun: its base need not be there to read the configuration."""
    run = load_run(path, [f"stages.{name}.init_from=random", *overrides])
    origin = yaml.safe_load(path.read_text())["stages"][name]["init_from"]
    stages = {
        **run.stages,
        name: dataclasses.replace(run.stages[name], init_from=origin),
    }
    return stage_task(dataclasses.replace(run, stages=stages), name)


@pytest.mark.parametrize(
    "again",
    [
        *("{}/base", "{}/base/", "{}/./other/../base", "{}/linked/base"),
        "{}/copied/base",  # a copy that was compared, and is gone as well
    ],
)
def test_an_origin_that_is_gone_keeps_its_name(tmp_path: Path, again: str) -> None:
    (tmp_path / "linked").symlink_to(tmp_path)
    path = started_from(tmp_path, short=f"{tmp_path}/base")
    then = task_of(path, "short")
    begun = manifest(then, 1, parent=f"{tmp_path}/base")
    now = task_of(started_from(tmp_path, short=again.format(tmp_path)), "short")
    if "copied" in again:
        begun = dataclasses.replace(begun, config=now.config)
    assert require_same_stage(now, Path("update-1"), begun) == []


@pytest.mark.parametrize("name", ["base-b", "bas", "base/deeper", "hf"])
def test_another_origin_that_cannot_be_read_is_another(
    tmp_path: Path, name: str
) -> None:
    path = started_from(tmp_path, short=f"{tmp_path}/base")
    begun = manifest(task_of(path, "short"), 1, parent=f"{tmp_path}/base")
    if name == "hf":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    if name == "base-b":  # damaged, not absent
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{")
    now = task_of(started_from(tmp_path, short=f"{tmp_path}/{name}"), "short")
    line = GONE.format("short", tmp_path / "base", tmp_path / name)
    for updates in (1, 12):
        then = dataclasses.replace(begun, update=updates)
        assert line in refusal(now, then)
        bare = dataclasses.replace(then, config={})
        assert line in refusal(now, bare)
    random = dataclasses.replace(begun, parent=None)
    assert GONE.format("short", "random", tmp_path / name) in refusal(now, random)


def test_another_stage_that_is_not_finished_is_another(tmp_path: Path) -> None:
    path = started_from(tmp_path, third="random")
    then = task_of(path, "long")
    parent = f"{tmp_path}/out/stages/short/checkpoints/update-00000012"
    first = StageState.at_start("short", then.stage, "plan").ledger
    begun = manifest(then, 1, parent=parent)
    begun = dataclasses.replace(begun, ledger=(first, *begun.ledger))
    assert require_same_stage(then, Path("update-1"), begun) == []
    now = task_of(started_from(tmp_path, long="third"), "long")
    assert GONE.format("long", "short", "third") in refusal(now, begun)
    # What a stage of another run is called says nothing, whatever both are called.
    foreign = dataclasses.replace(begun, parent="/else/stages/short/checkpoints/u-1")
    config = {**then.config, "stages": {**then.config["stages"]}}
    config["stages"]["long"] = {**config["stages"]["long"], "init_from": "/else"}
    foreign = dataclasses.replace(foreign, config=config)
    assert GONE.format("long", "/else", "short") in refusal(then, foreign)
    # By its path it is the same one.
    path = started_from(tmp_path, long=parent)
    assert require_same_stage(task_of(path, "long"), Path("update-1"), begun) == []


def test_a_run_that_was_moved_with_what_it_started_from_goes_on(tmp_path: Path) -> None:
    path = started_from(tmp_path / "a", short=f"{tmp_path}/a/base")
    begun = manifest(task_of(path, "short"), 1, parent=f"{tmp_path}/a/base")
    moved = started_from(tmp_path / "b", short=f"{tmp_path}/b/base")
    assert require_same_stage(task_of(moved, "short"), Path("u"), begun) == []
    other = task_of(started_from(tmp_path / "b", short=f"{tmp_path}/b/else"), "short")
    assert "init_from" in refusal(other, begun)
    # Another output alone, as of a copy beside it, changes no name.
    beside = task_of(path, "short", f"output={tmp_path}/c/out")
    assert require_same_stage(beside, Path("u"), begun) == []
