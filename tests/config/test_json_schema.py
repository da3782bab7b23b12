"""The JSON schema says of a configuration what the types say: shipped files pass, and what
`check` refuses for its type does not. The words and tables of all settings are complete.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.config.descriptions import all_settings, setting_at, written
from alia_ctx.config.json_schema import run_schema
from alia_ctx.config.layouts import AUTO
from alia_ctx.config.load import read_config
from alia_ctx.config.reference import with_tables
from alia_ctx.config.run import RunConfig
from alia_ctx.config.schema import build
from alia_ctx.errors import Problems
from tests.config.test_load import NEW
from tests.paths import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RUNS = [*sorted((ROOT / "configs").glob("*.yaml")), *(ROOT / "configs/runs").iterdir()]
PAGE = ROOT / "docs" / "configuration.md"


@cache
def validator(*, partial: bool = False) -> Draft202012Validator:
    schema = run_schema(partial=partial)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@cache
def alia() -> dict[str, Any]:
    """A configuration with nearly everything in it."""
    document = read_config(ROOT / "configs" / "alia-40b.yaml")
    document["evaluation"] |= {"best": {"metric": "loss"}, "retrieval": {"samples": 4}}
    document["stages"]["32k"]["pack"]["length_buckets"] = [
        {"min_tokens": 4096, "share": 0.5}
    ]
    return document


@pytest.mark.parametrize("file", RUNS, ids=lambda f: str(f.relative_to(ROOT)))
def test_shipped_runs_as_loaded(file: Path) -> None:
    validator().validate(read_config(file))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: str(f.relative_to(ROOT)))
def test_shipped_files_as_they_are_written(file: Path) -> None:
    document = OmegaConf.to_container(OmegaConf.create(file.read_text()), resolve=False)
    validator(partial=True).validate(document)
    if "include" in document or "stage_defaults" in document:
        validator().validate(document)


WRONG: list[tuple[str, Any]] = [
    ("name", None),
    ("name", ["a"]),
    ("name", ["alia"]),
    ("output", {"a": 1}),
    ("seed", "many"),
    ("seed", 1.5),
    ("seed", 2**63),
    ("seed", True),
    ("surplus", 1),
    ("tokenizer", {"path": "x"}),
    ("model", "from_hub"),
    ("model.num_hidden_layers", "48"),
    ("model.num_hidden_layers", 48.5),
    ("model.tie_word_embeddings", 1),
    ("model.tie_word_embeddings", "yes"),
    ("model.architecture", "gpt2"),
    ("model.layers", 48),
    ("data", []),
    ("data.sources", None),
    ("data.sources.long", "text/*.jsonl"),
    ("data.sources.long.inputs", "text/*.jsonl"),
    ("data.sources.long.inputs", [["a"]]),
    ("data.special_tokens", "drop"),
    ("stages", ["32k"]),
    ("stages.32k.context", "32k"),
    ("stages.32k.context", None),
    ("stages.32k.rope", "llama3"),
    ("stages.32k.rope.theta", "10000"),
    ("stages.32k.rope.beta", 32),
    ("stages.32k.layout", {"tp": "4"}),
    ("stages.32k.layout", "best"),
    ("stages.32k.layout", {"dp": 4}),
    ("stages.32k.recompute", True),
    ("stages.32k.schedule", "cosine"),
    ("stages.32k.pack.weights", {"long": "0.6"}),
    ("stages.32k.pack.length_buckets", [{"min_tokens": 4096}]),
    ("stages.32k.learning_rate", float("1e39")),
    ("engine.precision", "fp16"),
    ("engine.hang_minutes", "30"),
    ("optimizer.beta1", None),
    ("checkpoint.background", 1),
    ("evaluation.measure", ["position"]),
    ("evaluation.best", {"mode": "min"}),
    ("evaluation.retrieval.tasks", "vt"),
    ("metrics.sinks", ["stdout"]),
]
LACKING = ("name", "output", "stages", "data.sources", "stages.32k.rope.type")


def placed(key: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(alia())
    *way, last = key.split(".")
    inside = document
    for name in way:
        inside = inside.setdefault(name, {})
    inside[last] = value
    return document


def refused(document: dict[str, Any]) -> bool:
    """Whether the types refuse it, as `check` does; `auto` is a word before typing."""
    document = copy.deepcopy(document)
    for stage in document["stages"].values() if _is_mapping(document) else ():
        if isinstance(stage, dict) and stage.get("layout") == AUTO:
            del stage["layout"]
    problems = Problems()
    build(RunConfig, document, "", problems)
    return bool(problems)


def _is_mapping(document: dict[str, Any]) -> bool:
    return isinstance(document.get("stages"), dict)


def test_there_are_enough_that_are_wrong() -> None:
    assert len(WRONG) >= 30
    assert not refused(alia())
    validator().validate(alia())


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda each: str(each)[:40])
def test_what_check_refuses_for_its_type(key: str, value: Any) -> None:
    document = placed(key, value)
    assert refused(document)
    assert not validator().is_valid(document)


@pytest.mark.parametrize("key", LACKING)
def test_what_lacks_something(key: str) -> None:
    document = copy.deepcopy(alia())
    *way, last = key.split(".")
    inside: Any = document
    for name in way:
        inside = inside[name]
    del inside[last]
    assert refused(document)
    assert not validator().is_valid(document)
    assert validator(partial=True).is_valid(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stages.32k.layout", AUTO),
        ("stages.32k.init_from", 4096),
        ("stages.32k.context", 32768.0),
        ("stages.32k.tokens", None),
        ("name", 40),
        ("evaluation.held_out", None),
    ],
)
def test_what_check_takes(key: str, value: Any) -> None:
    document = placed(key, value)
    assert not refused(document)
    validator().validate(document)


def test_a_model_by_reference() -> None:
    for model in ("from_checkpoint", None, {"num_hidden_layers": 30}):
        validator().validate({**alia(), "model": model})
    document = copy.deepcopy(alia())
    del document["model"]
    validator().validate(document)


def test_the_command_prints_it() -> None:
    for arguments in ([], ["--partial"]):
        shown = CliRunner().invoke(app, ["schema", *arguments], catch_exceptions=False)
        assert json.loads(shown.output) == run_schema(partial=bool(arguments))


# --- words and tables -----------------------------------------------------------------------


def test_every_setting_is_described_and_nothing_else() -> None:
    settings = list(all_settings())  # KeyError where one lacks its words
    assert len(settings) > 140
    assert all(s.text and s.example is not None for s in settings)
    described = {(owner, name) for owner, names in written().items() for name in names}
    assert described == {(s.owner.__name__, s.name) for s in settings}
    assert (
        setting_at("stages.32k.rope.factor").text
        == written()["RopeSpec"]["factor"]["text"]
    )
    assert setting_at("stages.32k.pack.weights.long") is not None
    assert setting_at("stages.32k.rope.nothing") is None


def test_examples_are_of_the_type() -> None:
    for setting in all_settings():
        problems = Problems()
        build(setting.owner, {setting.name: setting.example}, "", problems)
        own = [p for p in problems if p.key == setting.name]
        if setting.example not in (AUTO, "from_checkpoint"):
            assert not own, setting.key


def test_defaults_of_the_schema_are_those_of_the_types() -> None:
    properties = run_schema()["$defs"]["EngineConfig"]["properties"]
    engine = next(f for f in dataclasses.fields(RunConfig) if f.name == "engine")
    for name, value in dataclasses.asdict(engine.default_factory()).items():  # type: ignore[misc]
        assert properties[name]["default"] == value
    assert (
        NEW["notes"]
        == run_schema()["$defs"]["RunConfig"]["properties"]["notes"]["default"]
    )


def test_the_page_has_every_setting_and_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    made = with_tables(page)
    assert made == page, "python -m alia_ctx.config.reference docs/configuration.md"
    listed = {
        line.split("`")[1] for line in page.splitlines() if line.startswith("| `")
    }
    needed = {s.key for s in all_settings()}
    needed -= {key for key in needed if key.startswith("evaluation.held_out.")}
    assert needed == listed
    for line in page.splitlines():
        if line.startswith("| `"):
            example = line.replace("\\|", "|").rstrip("| ").rpartition("`")[0]
            yaml.safe_load(example.rpartition("`")[2])
