"""Names with dots in overrides, variables in paths, outputs that are nobody's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alia_ctx.config.load import load_run, read_config
from alia_ctx.errors import ConfigError
from tests.small_run import write_run


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    return str(caught.value)


def with_dots(folder: Path) -> Path:
    path = write_run(folder)
    raw = yaml.safe_load(path.read_text())
    raw["stages"]["v1.5"] = raw["stages"].pop("short")
    raw["stages"]["v1.5.b"] = {**raw["stages"].pop("long"), "init_from": "v1.5"}
    raw["data"]["sources"]["a.b"] = raw["data"]["sources"].pop("text")
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def test_a_name_with_dots_can_be_overridden(tmp_path: Path) -> None:
    path = with_dots(tmp_path)
    run = load_run(
        path,
        [
            "stages.v1.5.tokens=8192",
            "stages.v1.5.b.learning_rate=0.5",
            "stages.v1.5.b.pack.weights.a.b=1.0",
            "data.sources.a.b.max_document_bytes=77",
            "stages.v1.5.b.rope.type=default",
        ],
    )
    assert run.stages["v1.5"].tokens == 8192
    assert run.stages["v1.5.b"].learning_rate == 0.5
    assert run.stages["v1.5.b"].rope.type == "default"
    assert run.data.sources["a.b"].max_document_bytes == 77
    assert [*run.stages] == ["v1.5", "v1.5.b"]
    assert [*load_run(path, ["stages.v1.5.b=null"]).stages] == ["v1.5"]


def test_what_no_name_fits_is_cut_at_every_dot(tmp_path: Path) -> None:
    path = with_dots(tmp_path)
    assert "stages.v1.6" in problems(path, "stages.v1.6.tokens=1")
    raw = read_config(path, ["stages.v1.5.b.layout.tp=2", "engine.precision=bf16"])
    assert raw["stages"]["v1.5.b"]["layout"] == {"tp": 2}
    assert raw["engine"]["precision"] == "bf16"


@pytest.mark.parametrize("key", ["output", "tokenizer", "stages.short.init_from"])
@pytest.mark.parametrize("value", ["$HOME/x", "/data/$USER", "$SCRATCH"])
def test_a_variable_in_a_path_is_named(tmp_path: Path, key: str, value: str) -> None:
    told = problems(write_run(tmp_path), f"{key}={value}")
    assert key in told and "oc.env" in told


def test_a_variable_of_the_environment_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    run = load_run(write_run(tmp_path), ["output=${oc.env:PLACE}/there"])
    assert run.output == f"{tmp_path}/there"


def test_a_file_may_have_a_dollar_in_its_name(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    (tmp_path / "$a.txt").write_text("text")
    source = f"data.sources.text={{inputs: ['{tmp_path}/$a.txt'], store: null}}"
    assert load_run(path, [source]).data.sources["text"].inputs


@pytest.mark.parametrize("place", ["/", "//", "/tmp/..", "~/"])
def test_an_output_that_is_nobodys_own(tmp_path: Path, place: str) -> None:
    told = problems(write_run(tmp_path), f"output={place}")
    assert "output=" in told and "give a directory of its own" in told
