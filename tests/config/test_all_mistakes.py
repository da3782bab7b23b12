"""Mistakes are told together, and what is left open says what to write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx.config.load import load_run, require_stages
from alia_ctx.errors import ConfigError
from alia_ctx.workflow.starting import load_on_all_ranks
from tests.paths import python_path
from tests.small_run import write_run


def problems(path: Path, *overrides: str) -> dict[str, Any]:
    with pytest.raises(ConfigError) as refused:
        load_run(path, overrides)
    return {problem.key: problem for problem in refused.value.problems}


@pytest.mark.parametrize(
    "unknown",
    [
        "stages.short.contxt=1",
        "stages.short.rope.thetta=1",
        "stages.short.layout.dp=2",
        "stages.short.pack.polcy=best_fit",
        "data.wrkers=2",
        "data.sources.text.inptus=[a]",
        "model.layers=2",
        "evaluation.best={metric: loss, mod: max}",
        "engine.dtype=bf16",
        "nonsense=1",
    ],
)
def test_an_unknown_key_hides_nothing(unknown: str, tmp_path: Path) -> None:
    """Of the same part and of others."""
    wrong = ("stages.short.tokens=0", "stages.long.learning_rate=-1")
    told = problems(write_run(tmp_path), unknown, *wrong)
    key = unknown.partition("=")[0]
    key += ".mod" if key.endswith("best") else ""
    assert told.keys() >= {key, "stages.short.tokens", "stages.long.learning_rate"}


def test_binary_thousands_are_written_out(tmp_path: Path) -> None:
    told = problems(
        write_run(tmp_path), "stages.short.context=2k", "stages.long.tokens=3M"
    )
    assert "write 2048" in told["stages.short.context"].remedy
    assert f"write {3 << 20}" in told["stages.long.tokens"].remedy


def test_a_placeholder_says_type_and_when_which(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    document = yaml.safe_load(path.read_text())
    document["data"]["append_eos"] = document["engine"]["precision"] = "???"
    document["stages"]["short"]["tokens"] = document["tokenizer"] = "???"
    path.write_text(yaml.safe_dump(document))
    told = problems(path)
    for key, words in {
        "data.append_eos": ("true or false", "trained on did", "example true"),
        "engine.precision": ("one of `fp32`, `bf16`", "example bf16"),
        "stages.short.tokens": ("whole number", "budget", "2000000000"),
        "tokenizer": ("text", "directory of a Hugging Face tokenizer"),
    }.items():
        assert all(word in told[key].remedy for word in words), told[key].remedy


def test_ranks_that_were_started_are_the_first_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "6")
    wide = ["cluster.ranks_per_node=4", "stages.short.layout.tp=3"]
    with pytest.raises(ConfigError) as refused:
        load_on_all_ranks(path, wide, ["short"])
    first, *others = refused.value.problems
    assert first.key == "cluster.ranks_per_node"
    assert "6 ranks were started" in first.rule and "1 x 4 = 4" in first.rule
    assert any(problem.key.startswith("stages.short.layout") for problem in others)
    assert load_on_all_ranks(path, ["cluster.ranks_per_node=4"], ["short"])
    assert "6 ranks were started" in capsys.readouterr().err
    assert load_on_all_ranks(path, ["stages.short.nodes=6"], ["short"])
    assert not capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ConfigError, match=r"stages.short.layout"):
        load_on_all_ranks(path, ["stages.short.layout.tp=3"], ["short"])


def test_stages_of_other_names(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    require_stages(path, (), ["short", "long"])
    with pytest.raises(ConfigError, match=r"--stage=middle: .* short, long") as refused:
        require_stages(path, (), ["short", "middle"])
    assert refused.value.on_all_ranks
    require_stages(tmp_path / "no.yaml", (), ["middle"])  # said by whoever reads it


@pytest.mark.parametrize("command", ["train", "pack", "evaluate", "launch", "ablate"])
def test_a_wrong_stage_is_refused_before_torch_is_loaded(
    command: str, tmp_path: Path
) -> None:
    body = (
        "import sys; from alia_ctx.cli import main\n"
        f"sys.argv = ['alia-ctx', {command!r}, {str(write_run(tmp_path))!r}, "
        "'--stage', 'middle']\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", body],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": python_path()},
    )
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert "--stage=middle: there is no such stage" in done.stderr
