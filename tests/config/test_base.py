"""The model of a configuration and that of the checkpoints its stages go on from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx.config.load import load_run
from alia_ctx.errors import ConfigError
from alia_ctx.spec.model import ModelSpec
from tests.config.test_places import changed, problems_of, save
from tests.small_run import write_run

FACTS: dict[str, Any] = {
    "vocab_size": 199,
    "tie_word_embeddings": True,
    "rms_norm_eps": 9.999999747378752e-06,
}


def over_base(tmp_path: Path, model: Any, **facts: Any) -> Path:
    """The small run with `short` starting from a checkpoint, and `model` as given (None:
    left out).
    """
    path = write_run(tmp_path)
    save(tmp_path / "base", **{**FACTS, **facts})
    changed(path, stages__short__init_from=str(tmp_path / "base"), model=model)
    if model is None:
        document = yaml.safe_load(path.read_text())
        del document["model"]
        path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def base_model(tmp_path: Path) -> ModelSpec:
    return ModelSpec(2, 32, 64, 4, 2, 8, **FACTS)


@pytest.mark.parametrize("model", [None, "from_checkpoint", {}, {"rms_norm_eps": 1e-5}])
def test_the_facts_come_from_the_checkpoint(tmp_path: Path, model: Any) -> None:
    run = load_run(over_base(tmp_path, model))
    assert run.model == base_model(tmp_path)  # to the last bit, whatever was written
    assert run.to_dict()["model"]["tie_word_embeddings"] is True


@pytest.mark.parametrize("eps", [1e-5, 9.999999747378752e-06, 9.99999975e-06])
def test_numbers_are_compared_as_fp32(tmp_path: Path, eps: float) -> None:
    path = over_base(tmp_path, {"rms_norm_eps": eps})
    assert load_run(path).model.rms_norm_eps == FACTS["rms_norm_eps"]


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("num_hidden_layers", 32, 2),
        ("tie_word_embeddings", False, True),
        ("vocab_size", 200, 199),
        ("hidden_size", 64, 32),
        ("rms_norm_eps", 1e-6, 9.999999747378752e-06),
        ("rms_norm_eps", 1.00001e-5, 9.999999747378752e-06),
        ("attention_bias", True, False),
        ("qk_norm", True, False),
        ("architecture", "qwen2", "llama"),
    ],
)
def test_check_names_what_differs(
    tmp_path: Path, key: str, value: Any, fact: Any
) -> None:
    path = over_base(tmp_path, "from_checkpoint")
    for problems in (
        problems_of(path, f"model.{key}={value}"),
        problems_of(changed(path, model={key: value})),
    ):
        # These three belong together, and are held against each other as well.
        assert len(problems) == 1 or key in (
            "attention_bias",
            "qk_norm",
            "architecture",
        )
        (problem,) = [p for p in problems if f"{tmp_path / 'base'}" in p.rule]
        assert (problem.key, problem.value) == (f"model.{key}", value)
        assert problem.rule.startswith(f"is {fact} in {tmp_path / 'base'}")


def test_every_difference_at_once(tmp_path: Path) -> None:
    path = over_base(tmp_path, "from_checkpoint")
    wrong = ["model.num_hidden_layers=32", "model.tie_word_embeddings=false"]
    assert len(problems_of(path, *wrong, "model.vocab_size=5")) == 3


def test_two_bases_of_two_models(tmp_path: Path) -> None:
    path = over_base(tmp_path, "from_checkpoint")
    save(tmp_path / "other", **{**FACTS, "num_hidden_layers": 4})
    (problem,) = problems_of(path, f"stages.long.init_from={tmp_path / 'other'}")
    assert problem.key == "model.num_hidden_layers" and "stage long" in problem.rule


def test_without_a_base_there_is_nothing_to_take(tmp_path: Path) -> None:
    path = changed(write_run(tmp_path), model="from_checkpoint")
    problems = problems_of(path)
    assert problems[0].key == "model"
    assert "no stage starts from a checkpoint" in problems[0].rule
    gone = f"stages.short.init_from={tmp_path / 'gone'}"
    assert {"model", "stages.short.init_from"} <= {
        p.key for p in problems_of(path, gone)
    }


def test_a_base_that_is_not_mounted(tmp_path: Path) -> None:
    path = changed(write_run(tmp_path), model="from_checkpoint", root="/not/mounted")
    rules = [p.rule for p in problems_of(path, "stages.short.init_from=/not/mounted/b")]
    assert any("not on this machine" in rule for rule in rules)
    path = changed(path, model={**vars(base_model(tmp_path))})
    assert problems_of(path, "stages.short.init_from=/not/mounted/b") == []


def test_a_hugging_face_directory_is_named_with_its_conversion(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    path = write_run(tmp_path)
    (problem,) = problems_of(path, f"stages.short.init_from={tmp_path / 'hf'}")
    assert "Hugging Face directory" in problem.rule and "import-hf" in problem.remedy


def test_a_base_that_cannot_be_read(tmp_path: Path) -> None:
    path = over_base(tmp_path, {**vars(base_model(tmp_path))})
    (tmp_path / "base" / "manifest.json").write_text("{")
    (problem,) = problems_of(path)
    assert problem.key == "stages.short.init_from" and "manifest.json" in problem.rule


def test_a_base_may_vanish_once_its_stage_has_trained(tmp_path: Path) -> None:
    path = over_base(tmp_path, "from_checkpoint")
    shutil.rmtree(tmp_path / "base")
    assert "stages.short.init_from" in {p.key for p in problems_of(path)}
    save(tmp_path / "out/stages/short/checkpoints/update-00000003", **FACTS)
    assert load_run(path).model == base_model(tmp_path)
    assert load_run(path, stages=["long"]).model == base_model(tmp_path)
    # And the stage's own checkpoint is what the next one is compared with.
    (problem,) = problems_of(path, "model.num_hidden_layers=3", stages=["long"])
    assert "update-00000003" in problem.rule


def test_a_damaged_checkpoint_of_the_run_is_passed_over(tmp_path: Path) -> None:
    """What to do about it is the trainer's to say."""
    path = over_base(tmp_path, "from_checkpoint")
    folder = tmp_path / "out/stages/short/checkpoints"
    save(folder / "update-00000003", **FACTS)
    save(folder / "update-00000006", **FACTS)
    (folder / "update-00000006" / "manifest.json").write_text("{")
    assert load_run(path).model == base_model(tmp_path)


def test_differences_of_models() -> None:
    spec = ModelSpec(2, 32, 64, 4, 2, 8, 200)
    assert spec.differences(replace(spec, rms_norm_eps=9.999999747378752e-06)) == {}
    assert spec.differences(replace(spec, vocab_size=199)) == {"vocab_size": (200, 199)}


def test_a_model_that_is_neither(tmp_path: Path) -> None:
    for model in ("from_somewhere", 3, [1]):
        (tmp_path / str(model)).mkdir()
        with pytest.raises(ConfigError, match="model="):
            load_run(over_base(tmp_path / str(model), model))
