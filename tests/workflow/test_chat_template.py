"""The chat template of a stage's conversations, as checkpoints state it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.documents.chat_spec import TEMPLATES
from alia_ctx.errors import DataError
from alia_ctx.workflow.chat_template import template_of_stage
from tests.data.chat.tokenizers import byte_level
from tests.small_run import write_run
from tests.tokenizers import save

PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content "
    "+ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_chats(folder: Path, **templates: tuple[str, int]) -> Path:
    """A run with a source of conversations for each template and number of them."""
    path = write_run(folder)
    config = yaml.safe_load(path.read_text())
    save(byte_level(), folder / "chat tokenizer")
    config["tokenizer"] = str(folder / "chat tokenizer")
    config["model"]["vocab_size"] = 424
    for name, (template, count) in templates.items():
        rows = [
            [
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": "answer"},
            ]
            for number in range(count)
        ]
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
        config["data"]["sources"][name] = {
            "inputs": [str(file)],
            "chat": {"template": template},
        }
    config["stages"]["short"]["pack"] |= {"sources": ["text", *templates]}
    config["stages"]["long"]["pack"] |= {"sources": ["text"]}
    config["evaluation"] = {"held_out": None}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    workflow.tokenize(load_run(path))
    return path


def test_the_template_of_most_conversations_is_stated(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(PLAIN)
    path = write_chats(tmp_path, few=(TEMPLATES[0], 3), many=(str(own), 5))
    run = load_run(path)
    stated = template_of_stage(run, "short")
    assert stated is not None and stated["text"] == PLAIN
    assert stated["name"] == "own.jinja"  # no path of a machine
    assert stated["others"] == [TEMPLATES[0]]
    assert template_of_stage(run, "long") is None  # draws from text alone


PACK = {"policy": "best_fit", "long_docs": "drop", "sources": ["a", "b"]}
TEXT = {"tokens": 256 * 40, "update_tokens": 512, "context": 256}
CALLS = {"epochs": 2, "update_instances": 8, "context": 256}


@pytest.mark.parametrize(
    ("stage", "pack", "most"),
    [
        (CALLS, {}, "a"),
        (CALLS, {"max_instances": {"a": 4}}, "b"),
        (CALLS, {"sampling": {"a": 0.25}}, "b"),
        (CALLS, {"sampling": {"b": 3.0}}, "b"),
        (CALLS, {"max_instances": {"a": 14}}, "a"),
        (TEXT, {}, "a"),
        (TEXT, {"weights": {"a": 0.1, "b": 0.9}}, "b"),
    ],
)
def test_conversations_that_are_trained_count(
    stage: dict[str, Any], pack: dict[str, Any], most: str, tmp_path: Path
) -> None:
    """Not those that are there: a has 24, b 12."""
    run = trained_run(tmp_path, stage, pack, a=24, b=12)
    stated = template_of_stage(run, "short")
    names = {"a": TEMPLATES[0], "b": "own.jinja"}
    assert stated is not None and stated["name"] == names[most]
    assert stated["others"] == [names["b" if most == "a" else "a"]]


def test_a_template_of_nothing_that_is_trained_is_not_named(tmp_path: Path) -> None:
    few = {"context": 256, "tokens": 1024, "update_tokens": 256}
    weights = {"a": 0.0001, "b": 0.9999}
    run = trained_run(tmp_path, few, {"weights": weights}, a=9, b=50)
    stated = template_of_stage(run, "short")
    assert stated is not None and stated["name"] == "own.jinja"
    assert "others" not in stated


def trained_run(
    folder: Path, stage: dict[str, Any], pack: dict[str, Any], a: int, b: int
) -> RunConfig:
    """A packed stage `short` of so many conversations of `chatml-tools` and of another."""
    own = folder / "own.jinja"
    own.write_text(PLAIN)
    path = write_chats(folder, a=(TEMPLATES[0], a), b=(str(own), b))
    config = yaml.safe_load(path.read_text())
    old = config["stages"]["short"]
    kept = {key: old[key] for key in ("init_from", "rope", "learning_rate")}
    config["stages"] = {"short": {**kept, **stage, "pack": {**PACK, **pack}}}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    run = load_run(path)
    workflow.pack(run, "short")
    return run


def test_a_template_changed_since_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(PLAIN)
    run = load_run(write_chats(tmp_path, chats=(str(own), 3)))
    assert template_of_stage(run, "short") is not None
    own.write_text(PLAIN + "{# changed #}")
    with pytest.raises(DataError, match=r"another chat template.*own\.jinja.*restore"):
        template_of_stage(run, "short")
