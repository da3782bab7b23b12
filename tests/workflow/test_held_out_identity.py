"""Held-out text that is named anew is not measured by the store of the text before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config import load_run
from alia_ctx.errors import DataError
from alia_ctx.workflow.evaluation_tasks import run_measurement
from tests.small_run import write_run

WORDS = ["the", "rain", "in", "Girona", "falls", "mainly", "on", "the", "plain", "and"]
OTHER = r"held_out: this store was made from something else(?s:.*)inputs: "


def write_text(path: Path, first: int, documents: int = 4) -> str:
    path.parent.mkdir(exist_ok=True)
    texts = [" ".join(WORDS[(first + i) % 9 :] * 60) for i in range(documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path.parent)


def edit(path: Path, change: dict[str, Any]) -> None:
    document = yaml.safe_load(path.read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        into = document
        for parent in parents:
            into = into.setdefault(parent, {})
        into[last] = value
    path.write_text(yaml.safe_dump(document, sort_keys=False))


@pytest.fixture
def tokenized(tmp_path: Path) -> Path:
    """A run whose held-out text is es and ca, tokenised; eu and other training text lie
    beside them.
    """
    path = write_run(tmp_path)
    held = [
        write_text(tmp_path / name / "a.jsonl", i)
        for i, name in enumerate(("es", "ca"))
    ]
    write_text(tmp_path / "eu" / "a.jsonl", 5)
    train, _ = (
        write_text(tmp_path / n / "a.jsonl", 2, 90) for n in ("train", "train2")
    )
    edit(
        path,
        {
            "data.sources": {"text": {"inputs": [train]}},
            "evaluation.held_out": {"inputs": held},
        },
    )
    workflow.tokenize(load_run(path))
    return path


def measured(path: Path) -> Any:
    return run_measurement(load_run(path), 16, [16]).text


def test_what_it_was_made_of_is_measured(tokenized: Path) -> None:
    assert len(measured(tokenized).lengths) == 8


@pytest.mark.parametrize("inputs", [["ca", "eu"], ["eu"], ["es"], ["es", "ca", "eu"]])
def test_other_inputs_are_refused(tokenized: Path, inputs: list[str]) -> None:
    named = [str(tokenized.parent / name) for name in inputs]
    edit(tokenized, {"evaluation.held_out.inputs": named})
    with pytest.raises(DataError, match=OTHER):
        measured(tokenized)


def test_a_file_that_was_edited_is_refused(tokenized: Path) -> None:
    write_text(tokenized.parent / "ca" / "a.jsonl", 7)
    with pytest.raises(DataError, match=OTHER):
        measured(tokenized)


def test_text_that_is_not_mounted_here_is_not_compared(tokenized: Path) -> None:
    run = load_run(tokenized)
    (tokenized.parent / "ca").rename(tokenized.parent / "elsewhere")
    text = run_measurement(run, 16, [16]).text
    assert text is not None and len(text.lengths) == 8


def test_a_stage_that_measures_by_it_is_not_begun(tokenized: Path) -> None:
    workflow.pack(load_run(tokenized), "short")
    other = str(tokenized.parent / "eu")
    edit(
        tokenized,
        {"evaluation.held_out.inputs": [other], "evaluation.every_updates": 1},
    )
    with pytest.raises(DataError, match=OTHER):
        workflow.train(load_run(tokenized), "short")
    assert not list((tokenized.parent / "out").glob("stages/*/checkpoints/*"))


@pytest.mark.long
@pytest.mark.parametrize(
    "changed", ["data.sources.text.inputs", "evaluation.held_out.inputs"]
)
def test_choices_are_not_ranked_by_other_text(tokenized: Path, changed: str) -> None:
    choices = tokenized.parent / "choices.yaml"
    choices.write_text(yaml.safe_dump({"raised": {"type": "default", "theta": 90000}}))
    edit(tokenized, {changed: [str(tokenized.parent / "train2")]})
    with pytest.raises(DataError, match="made from something else"):
        workflow.ablate(tokenized, [], load_run(tokenized), "short", str(choices), 1)
    assert not list((tokenized.parent / "out").rglob("update-*"))
