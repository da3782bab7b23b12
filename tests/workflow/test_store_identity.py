"""A store that was made otherwise than the configuration says now is named, not used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import DataError
from tests.small_run import write_run

WORDS = ["the", "rain", "in", "Girona", "falls", "mainly", "on", "the", "plain", "and"]


@pytest.fixture
def tokenized(tmp_path: Path) -> Path:
    path = write_run(tmp_path)
    document = yaml.safe_load(path.read_text())
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": " ".join(WORDS[i % 7 :] * 9)}) for i in range(90)]
    text.write_text("\n".join(lines) + "\n")
    document["data"]["sources"] = {"text": {"inputs": [str(text)]}}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    workflow.tokenize(load_run(path))
    return path


def run_of(path: Path, *overrides: str) -> RunConfig:
    return load_run(path, overrides)


def test_the_same_text_tokenizer_and_options_are_used(tokenized: Path) -> None:
    workflow.pack(run_of(tokenized), "short")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.append_eos=false", "special_ids"),
        ("data.special_tokens=keep", "special_tokens"),
        ("data.sources.text.text_key=body", "text_key"),
    ],
)
def test_other_options_are_named(tokenized: Path, override: str, named: str) -> None:
    with pytest.raises(DataError, match=rf"made from something else(?s:.*){named}"):
        workflow.pack(run_of(tokenized, override), "short")


def test_other_text_is_named(tokenized: Path, tmp_path: Path) -> None:
    with (tmp_path / "text.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(DataError, match=r"inputs: 1 added, removed or changed"):
        workflow.pack(run_of(tokenized), "short")


def test_another_tokenizer_of_the_same_size_is_named(
    tokenized: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokenizer" / "tokenizer.json"
    document = json.loads(file.read_text())
    vocabulary = document["model"]["vocab"]
    first, second = [w for w in vocabulary if not w.startswith("<")][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"tokenizer: \w+ there, \w+ asked"):
        workflow.pack(run_of(tokenized), "short")
