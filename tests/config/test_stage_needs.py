"""A command for one stage is stopped by what that stage needs, and by nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alia_ctx.config.load import load_run
from tests.config.test_places import changed, problems_of, save, text_run
from tests.small_run import alia, write_run

OF_LONG = [
    "stages.long.layout.cp=2",  # needs two ranks, there is one
    "stages.long.layout.tp=64",
    "stages.long.rope.factor=1",
    "stages.long.tokens=1",
    "stages.long.update_tokens=1",
    "stages.long.learning_rate=0",
    "stages.long.init_from=/no/such/checkpoint",
    "stages.long.nodes=7",
]


@pytest.mark.parametrize("override", OF_LONG[:-1])
def test_what_another_stage_breaks_is_no_obstacle(
    tmp_path: Path, override: str
) -> None:
    path = write_run(tmp_path)
    assert problems_of(path, override)
    assert problems_of(path, override, stages=["long"])
    assert problems_of(path, override, stages=["short"]) == []
    assert problems_of(path, override, stages=["short", "long"])


def test_a_stage_that_is_started_needs_its_base_no_more(tmp_path: Path) -> None:
    path = changed(write_run(tmp_path), stages__short__init_from=str(tmp_path / "base"))
    save(tmp_path / "base")
    assert problems_of(path) == []
    shutil.rmtree(tmp_path / "base")
    for stages in ([], ["short"]):
        keys = [p.key for p in problems_of(path, stages=stages)]
        assert keys == ["stages.short.init_from"]
    assert problems_of(path, stages=["long"]) == []  # `train` says what it lacks
    save(tmp_path / "out/stages/short/checkpoints/update-00000012")
    for stages in ([], ["short"], ["long"]):
        assert problems_of(path, stages=stages) == []


def test_text_that_is_tokenised_is_needed_no_more(tmp_path: Path) -> None:
    path = text_run(tmp_path)
    tokens = tmp_path / "run/out/tokens"
    tokens.mkdir(parents=True)
    shutil.rmtree(tmp_path / "train")
    assert problems_of(path, stages=["short"])
    for suffix in (".bin", ".idx"):
        shutil.copy(tmp_path / f"run/text{suffix}", tokens / f"text{suffix}")
    assert problems_of(path, stages=["short"]) == []
    assert problems_of(path)  # `tokenize` and `run` want it


def test_a_mistake_of_type_stops_every_command(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert problems_of(path, "stages.long.layout.cpp=2", stages=["short"])


def test_what_all_stages_share_is_asked_always(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    for override in ("model.head_dim=7", "optimizer.beta1=2", "tokenizer=/no"):
        assert problems_of(path, override, stages=["short"])


@pytest.mark.parametrize(
    "architecture, changes, key",
    [
        ("llama", {"attention_bias": "true"}, "attention_bias"),
        ("mistral", {"qk_norm": "true"}, "qk_norm"),
        ("qwen2", {}, "attention_bias"),
        ("qwen3", {}, "qk_norm"),
        ("qwen3", {"qk_norm": "true", "attention_bias": "true"}, "attention_bias"),
    ],
)
def test_an_architecture_decides_what_it_computes(
    tmp_path: Path, architecture: str, changes: dict[str, str], key: str
) -> None:
    """As that it is exported, and transformers computes it so."""
    path = write_run(tmp_path)
    given = [f"model.{name}={value}" for name, value in changes.items()]
    (problem,) = problems_of(path, f"model.architecture={architecture}", *given)
    assert problem.key == f"model.{key}" and architecture in problem.rule
    own = {"qwen2": ["attention_bias"], "qwen3": ["qk_norm"]}.get(architecture, [])
    right = [f"model.{name}=true" for name in own]
    assert not problems_of(path, f"model.architecture={architecture}", *right)


def test_random_weights_that_are_all_zero(tmp_path: Path) -> None:
    (problem,) = problems_of(write_run(tmp_path), "model.initializer_range=0")
    assert problem.key == "model.initializer_range" and "stage short" in problem.rule


def test_training_one_stage_on_one_rank(tmp_path: Path) -> None:
    path = write_run(tmp_path, tokens=64 * 8 * 2)
    two_ranks = "stages.long.layout.cp=2"
    for command in (["pack"], ["train"], ["check"], ["plan"]):
        done = alia(*command, str(path), "--stage", "short", two_ranks)
        assert done.returncode == 0, done.stderr
    done = alia("pack", str(path), "--stage", "long", two_ranks)
    assert done.returncode == 2
    assert "start a multiple of 2 ranks" in done.stderr


def test_loading_for_a_stage_gives_the_whole_run(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert load_run(path, stages=["short"]) == load_run(path)
