"""How a configuration is put together: includes, stage defaults, overrides."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx.config.draft import Draft
from alia_ctx.config.evaluation import EvaluationConfig, RetrievalConfig
from alia_ctx.config.load import load_run, read_config
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import ConfigError
from alia_ctx.spec.cluster import ClusterSpec
from tests.paths import ROOT

LLAMA3 = {
    "type": "llama3",
    "theta": 10000,
    "factor": 8,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
}


def write(folder: Path, **files: Any) -> Path:
    """YAML files by name (`a__b` is `a/b`); returns the one called `run`."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "run.yaml"


@pytest.mark.parametrize("file", sorted((ROOT / "configs/runs").glob("*.yaml")))
def test_every_shipped_run_is_read(file: Path, tmp_path: Path) -> None:
    """What is wrong in one is refused here, an included one's sources among it; what a demo
    has left of it in this checkout is not read.
    """
    try:
        assert load_run(file, [f"root={tmp_path / 'none'}"]).stages
    except ConfigError as error:  # sizes are those of a model that is imported first
        assert [problem.key for problem in error.problems] == ["model"]


@pytest.mark.parametrize("name", ["alia-40b"])
@pytest.mark.parametrize("folder", ["", "runs/"])
def test_shipped_configurations_are_what_one_file_said(folder: str, name: str) -> None:
    """`resolved/` was written from the single files of version 0.1."""
    resolved = load_run(ROOT / "configs" / f"{folder}{name}.yaml").to_dict()
    expected = json.loads((Path(__file__).parent / f"resolved/{name}.json").read_text())
    # What came since: sources of conversations, and the stage that is trained on them.
    for part, then in (
        (resolved["data"]["sources"], expected["data"]["sources"]),
        (resolved["stages"], expected["stages"]),
    ):
        for added in part.keys() - then.keys():
            del part[added]
    del resolved["launch"]  # of the cluster's file, and of no stage
    for stage in resolved["stages"].values():
        assert set(stage["pack"].pop("sources")) <= set(expected["data"]["sources"])
    for stage in expected["stages"].values():
        for gone in ("holdout_documents", "holdout_min_tokens", "holdout_seed"):
            del stage["pack"][gone]
    # The order counts too: stages follow each other as they are written.
    assert json.dumps(without_new(resolved, expected)) == json.dumps(expected)


NEW = {
    **{f.name: f.default for f in dataclasses.fields(ClusterSpec)},
    "compute_capability": 9.0,  # as MareNostrum 5's file says
    **{
        name: getattr(EvaluationConfig(), name)
        for name in ("measure", "during", "best")
    },
    "retrieval": dataclasses.asdict(RetrievalConfig()),
    **{"layers": "local", "fp8": "off", "fp8_bf16_layers": 1},
    "mlp_chunk_tokens": None,
    "tp_overlap_chunks": 1,
    "special_tokens": "split",
    "stage_to": None,
    "data": "continue",
    "drop_contaminated": False,
    **{"instances": None, "licence": None, "dataset": None, "chat": None},
    **{"epochs": None, "update_instances": None, "published": None},
    "loss_weighting": "token",
    "schedule": {"type": "constant", "warmup": 0.0, "min_learning_rate": 0.0},
    **{"sampling": {}, "max_instances": {}, "held_out_instances": 0, "min_rows": 1},
    "notes": [],
    "hf_base": None,
    "position_edges": [],
}


def without_new(resolved: Any, expected: Any) -> Any:
    """`resolved` without settings that `expected` does not have, at their defaults."""
    if not isinstance(resolved, dict) or not isinstance(expected, dict):
        return resolved
    for added in resolved.keys() - expected.keys():
        assert resolved[added] == NEW[added], added
    return {
        key: without_new(value, expected[key])
        for key, value in resolved.items()
        if key in expected
    }


def test_a_draft_has_every_part_of_a_run() -> None:
    parts = {field.name for field in dataclasses.fields(RunConfig)} - {"stages"}
    assert parts <= {field.name for field in dataclasses.fields(Draft)}


def test_later_includes_win_and_the_file_wins_over_them(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        a={"model": {"x": 1, "y": 1, "z": 1}, "list": [1, 2]},
        deep__b={"model": {"y": 2, "z": 2}, "list": [3]},
        run={"include": ["a", "deep/b.yaml"], "model": {"z": 3}},
    )
    assert read_config(run) == {"model": {"x": 1, "y": 2, "z": 3}, "list": [3]}
    assert read_config(run, ["model.z=4", "list=[]"])["model"]["z"] == 4


def test_paths_are_relative_to_the_including_file(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        parts__inner__c={"c": 1},
        parts__b={"include": "inner/c", "b": 1},
        run={"include": "parts/b", "a": 1},
    )
    assert read_config(run) == {"c": 1, "b": 1, "a": 1}
    elsewhere = write(tmp_path / "elsewhere", run={"include": str(run)})
    assert read_config(elsewhere) == {"c": 1, "b": 1, "a": 1}


def test_one_file_may_be_included_twice_but_not_by_itself(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        base={"x": 1},
        a={"include": "base"},
        b={"include": "base"},
        run={"include": ["a", "b"]},
    )
    assert read_config(run) == {"x": 1}
    run = write(tmp_path, a={"include": "b"}, b={"include": "run"})
    with pytest.raises(ConfigError, match=r"run\.yaml includes itself.*a\.yaml -> "):
        read_config(run)


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("no/such", r"run\.yaml: include: there is neither .*no/such"),
        (["base", "gone.yaml"], r"gone\.yaml"),
        (3, "there is neither"),
        ([["base"]], "must be a file name"),
        ({"base": 1}, "must be a file name"),
        (None, "must be a file name"),
    ],
)
def test_a_broken_include_names_the_file(
    tmp_path: Path, include: Any, expected: str
) -> None:
    run = write(tmp_path, base={"x": 1}, run={"include": include})
    with pytest.raises(ConfigError, match=expected):
        read_config(run)


def test_a_broken_included_file_is_named(tmp_path: Path) -> None:
    run = write(tmp_path, run={"include": "base"})
    for text in ("a: [", "- a\n- b\n", "a: 1\na: 2\n"):
        (tmp_path / "base.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"base\.yaml"):
            read_config(run)


def test_stage_defaults_lie_under_every_stage(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        run={
            "root": "/somewhere",
            "stage_defaults": {
                "context": 64,
                "init_from": "${root}/base",
                "pack": {"policy": "concat", "long_docs": "split"},
            },
            "stages": {"a": {}, "b": {"context": 128, "pack": {"policy": "best_fit"}}},
        },
    )
    stages = read_config(run, ["stage_defaults.context=32"])["stages"]
    assert stages["a"] == {
        "context": 32,
        "init_from": "/somewhere/base",
        "pack": {"policy": "concat", "long_docs": "split"},
    }
    assert stages["b"]["context"] == 128
    assert stages["b"]["pack"] == {"policy": "best_fit", "long_docs": "split"}


def test_stage_defaults_that_are_no_mapping(tmp_path: Path) -> None:
    run = write(tmp_path, run={"stage_defaults": [1], "stages": {"a": {}}})
    with pytest.raises(ConfigError, match=r"stage_defaults=\[1\]"):
        read_config(run)


@pytest.mark.parametrize("place", ["file", "include", "stage_defaults"])
@pytest.mark.parametrize(
    ("new", "kept"),
    [
        ("default", {"theta"}),
        ("linear", {"theta", "factor"}),
        ("yarn", {"theta", "factor", "original_max_position_embeddings"}),
        ("llama3", set(LLAMA3) - {"type"}),
    ],
)
def test_another_rope_type_drops_what_only_the_old_one_read(
    tmp_path: Path, place: str, new: str, kept: set[str]
) -> None:
    below: dict[str, Any] = {"stages": {"a": {"rope": LLAMA3}}}
    if place == "stage_defaults":
        below = {"stage_defaults": {"rope": LLAMA3}, "stages": {"a": {}}}
    above = {"stages": {"a": {"rope": {"type": new}}}}
    if place == "include":
        run = write(tmp_path, base=below, run={"include": "base", **above})
        resolved = read_config(run)
    else:
        run = write(tmp_path, run=below)
        resolved = read_config(run, [f"stages.a.rope.type={new}"])
    assert resolved["stages"]["a"]["rope"] == {
        "type": new,
        **{k: v for k, v in LLAMA3.items() if k in kept},
    }


def test_what_the_same_layer_says_of_rope_is_kept(tmp_path: Path) -> None:
    """A key that is said with the new type is a mistake to be shown, not to be dropped."""
    run = write(tmp_path, run={"stages": {"a": {"rope": LLAMA3}}})
    overrides = ["stages.a.rope.type=linear", "stages.a.rope.low_freq_factor=2"]
    assert read_config(run, overrides)["stages"]["a"]["rope"]["low_freq_factor"] == 2


def test_a_rope_type_that_does_not_exist_drops_nothing(tmp_path: Path) -> None:
    run = write(tmp_path, run={"stages": {"a": {"rope": LLAMA3}}})
    rope = read_config(run, ["stages.a.rope.type=ntk"])["stages"]["a"]["rope"]
    assert rope == {**LLAMA3, "type": "ntk"}


def test_yarn_by_one_override_is_a_whole_configuration() -> None:
    run = load_run(ROOT / "configs/alia-40b.yaml", ["stages.32k.rope.type=yarn"])
    assert run.stages["32k"].rope.low_freq_factor is None
    assert run.stages["32k"].rope.factor == 8
    assert run.stages["160k"].rope.type == "llama3"


def test_null_takes_out_a_stage_or_a_source(tmp_path: Path) -> None:
    parts = {"data": {"sources": {"a": {"x": 1}, "b": {}}}, "stages": {"s": {}}}
    run = write(tmp_path, run=parts)
    resolved = read_config(run, ["data.sources.a=null", "stages.s=null"])
    assert resolved == {"data": {"sources": {"b": {}}}, "stages": {}}
    # Where there is nothing to take out it is a mistake, and stays for `check` to name.
    assert read_config(run, ["stages.t=null"])["stages"] == {"s": {}, "t": None}


# What a setting of the kind below had of its own goes where the kind is replaced.
KINDS = {
    "a type that the stage leaves to stage_defaults": (
        "stages.32k.rope.type=default",
        "stages.32k.rope",
        {"type": "default", "theta": 10000},
    ),
    "a type of stage_defaults": (
        "stage_defaults.rope.type=default",
        "stages.32k.rope",
        {"type": "default", "theta": 10000},
    ),
    "what the override says itself stays": (
        "stages.32k.rope={type: default, factor: 4}",
        "stages.32k.rope",
        {"type": "default", "theta": 10000, "factor": 4},
    ),
    "a schedule": (
        "stages.fc.schedule.type=constant",
        "stages.fc.schedule",
        {"type": "constant", "warmup": 0.04},
    ),
    "a store in place of files": (
        "data.sources.xlam.store=/x",
        "data.sources.xlam",
        {
            "store": "/x",
            "instances": 59800,
            "licence": "cc-by-4.0",
            "dataset": "Salesforce/xlam-function-calling-60k",
        },
    ),
    "a held-out store": (
        "evaluation.held_out.store=/x",
        "evaluation.held_out",
        {"store": "/x"},
    ),
    "another best": (
        "evaluation.best.metric=passkey",
        "evaluation.best",
        {"metric": "passkey"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_is_replaced_as_a_whole(kind: str, tmp_path: Path) -> None:
    override, key, expected = KINDS[kind]
    file = tmp_path / "run.yaml"
    file.write_text(
        f"include: {ROOT}/configs/alia-40b\n"
        "evaluation: {best: {metric: loss, mode: min}}\n"
        "stages: {fc: {schedule: {min_learning_rate: 1.0e-7}}}\n"
    )
    found: Any = read_config(file, [override])
    for name in key.split("."):
        found = found[name]
    assert found == expected


def test_updates_of_conversations_replace_those_of_tokens() -> None:
    alia = ROOT / "configs/alia-40b.yaml"
    there = read_config(alia, ["stages.32k.update_instances=8", "stages.32k.epochs=1"])
    assert not {"tokens", "update_tokens"} & there["stages"]["32k"].keys()
    back = read_config(
        alia, ["stages.fc.update_tokens=163840", "stages.fc.tokens=163840"]
    )
    assert not {"epochs", "update_instances"} & back["stages"]["fc"].keys()
    both = read_config(alia, ["stages.32k={update_instances: 8, update_tokens: 65536}"])
    assert {"update_instances", "update_tokens"} <= both["stages"]["32k"].keys()


def test_a_file_replaces_a_kind_as_an_override_does(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"include: {ROOT}/configs/alia-40b\nstages: {{32k: {{rope: {{type: default}}}}}}\n"
    )
    assert read_config(file)["stages"]["32k"]["rope"] == {
        "type": "default",
        "theta": 10000,
    }
