"""A stage starts from a model of its own tokenizer, wherever that model comes from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from alia_ctx import checkpoint, workflow
from alia_ctx.config import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.tokens import changed_ids, tokenizer_statement
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import import_hf
from alia_ctx.identity import IdentityError
from alia_ctx.train.origin import require_same_tokenizer
from alia_ctx.workflow.chain import stage_task
from tests.hf_models import save_model
from tests.small_run import VOCABULARY, alia, write_run


def another(folder: Path, target: Path) -> Path:
    """The tokenizer in `folder` with ids permuted: the same size, other words."""
    shutil.copytree(folder, target)
    file = target / "tokenizer.json"
    document = json.loads(file.read_text())
    words = document["model"]["vocab"]
    words |= {"w7": words["w9"], "w9": words["w7"]}
    file.write_text(json.dumps(document))
    return target


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An imported model that carries the tokenizer of `write_run`; path of the run."""
    path = write_run(tmp_path)
    save_model(tmp_path / "hf", "llama", "default", vocab_size=VOCABULARY)
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "hf", dirs_exist_ok=True)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    document = yaml.safe_load(path.read_text())
    document["model"] = "from_checkpoint"
    document["stages"]["short"]["init_from"] = str(tmp_path / "ck")
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def refused(run: RunConfig, origin: Path) -> str:
    manifest = checkpoint.read_manifest(origin)
    with pytest.raises(IdentityError) as caught:
        require_same_tokenizer(stage_task(run, "short"), origin, manifest)
    return str(caught.value)


def test_an_imported_base_is_of_the_tokenizer_that_it_carries(base: Path) -> None:
    folder = base.parent
    assert workflow.unknown_tokenizer(load_run(base), "short") is None
    other = another(folder / "tokenizer", folder / "other")
    run = load_run(base, [f"tokenizer={other}"])
    with pytest.raises(
        IdentityError, match=r"2 tokens have other ids: 'w7' 7 there, 9"
    ):
        workflow.check_trained(run, "short")
    assert "ck/assets" in refused(run, folder / "ck")
    told = alia("check", str(base), f"tokenizer={other}")
    assert told.returncode == 2 and "2 tokens have other ids" in told.stderr


def test_a_model_without_tokenizer_is_said_to_have_none(base: Path) -> None:
    for file in (base.parent / "ck/assets").glob("tokenizer*"):
        file.unlink()
    told = alia("check", str(base))
    assert told.returncode == 0, told.stderr
    assert "neither states nor carries a tokenizer" in " ".join(told.stdout.split())


@pytest.mark.parametrize("key", ["tokenizer", "tokenizer_configured"])
def test_a_checkpoint_of_another_run_is_of_the_tokenizer_that_it_states(
    base: Path, key: str
) -> None:
    folder = base.parent
    other = another(folder / "tokenizer", folder / "other")
    shutil.rmtree(folder / "ck/assets")
    manifest = checkpoint.read_manifest(folder / "ck")
    document = dataclasses.replace(
        manifest,
        extra={key: tokenizer_statement(other)},
        config={"tokenizer": str(other)},
    ).to_json()
    (folder / "ck/manifest.json").write_text(json.dumps(document))
    assert "'w7' 9 there, 7 now" in refused(load_run(base), folder / "ck")
    shutil.rmtree(other)  # what it states is still known
    assert "tokenizer.tokenizer.json: " in refused(load_run(base), folder / "ck")


def test_tokens_in_addition_and_other_spellings_of_one_tokenizer_are_no_others(
    base: Path,
) -> None:
    folder = base.parent
    more = folder / "more"
    shutil.copytree(folder / "tokenizer", more)
    file = more / "tokenizer.json"
    document = json.loads(file.read_text())
    flags = {**document["added_tokens"][-1], "id": 200, "content": "<|im_start|>"}
    document["added_tokens"].append(flags)
    file.write_text(json.dumps(document, indent=1))
    (more / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert tokenizer_statement(more) != tokenizer_statement(folder / "tokenizer")
    assert changed_ids(folder / "tokenizer", more) == []
    assert changed_ids(more, folder / "tokenizer")
    document["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(document))
    assert "normalizer is another" in changed_ids(folder / "tokenizer", more)


def test_training_refuses_what_check_refuses(base: Path) -> None:
    folder = base.parent
    other = another(folder / "tokenizer", folder / "other")
    workflow.pack(load_run(base), "short")
    told = alia("train", str(base), "--stage", "short", f"tokenizer={other}")
    assert told.returncode == 2 and "2 tokens have other ids" in told.stderr
    assert not list((folder / "out/stages").glob("*/checkpoints/*"))
    assert not issubclass(IdentityError, CheckpointError)
