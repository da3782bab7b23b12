"""convert-chat, make-tool-data and tokenize of conversations, as a user calls them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import AliaError
from tests.data.chat.conversations import FORMS, cases
from tests.data.chat.tokenizers import save_chat_tokenizer
from tests.small_run import write_run


def alia(*words: Any) -> str:
    """Standard output of a command; its error is raised."""
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    records = [case.record for form in FORMS for case in cases(form, 2)]
    bad = {"messages": [{"role": "user", "content": "u"}]}
    path.write_text("\n".join(map(json.dumps, [*records, bad])))
    return path


def test_a_conversation_is_shown_three_ways(tmp_path: Path) -> None:
    path = rows(tmp_path)
    tokenizer = save_chat_tokenizer("byte level", tmp_path / "t")
    text = alia("convert-chat", path, "--tokenizer", tokenizer, "-n", 1)
    assert f"{path}:1" in text
    assert "user: " in text
    assert "<|im_start|>assistant\n" in text
    assert "[<|im_end|>]" in text
    assert "16 conversations, " in text
    assert f"1 rows left out: 1 no_answer\n  {path}:17: no_answer: " in text


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path, output = rows(tmp_path), tmp_path / "out.jsonl"
    alia("convert-chat", path, "-n", 0, "--output", output)
    first = output.read_text()
    assert first.count("\n") == 16
    assert "16 conversations" in alia("convert-chat", output, "--strict", "-n", 0)
    with pytest.raises(AliaError, match=r"--output=.*exists already"):
        alia("convert-chat", path, "--output", output)
    with pytest.raises(AliaError, match=r"rows\.jsonl:17: no_answer"):
        alia(
            "convert-chat", path, "-n", 0, "--strict", "--output", output, "--overwrite"
        )
    assert output.read_text() == first


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--template", "nowhere.jinja"], r"--template=.*no shipped template"),
        (["--max-tokens", "1"], "--max-tokens=1"),
        (["--output", "no/such/folder.jsonl"], "its folder does not exist"),
    ],
)
def test_options_that_cannot_be_meant(
    words: list[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(AliaError, match=told):
        alia("convert-chat", rows(tmp_path), *words)


def test_no_input_is_written_over(tmp_path: Path) -> None:
    path, tools = rows(tmp_path), tmp_path / "tools.jsonl.json"
    tools.write_text(json.dumps([{"name": "f", "description": "d", "parameters": {}}]))
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    for command, source, output in (
        ("convert-chat", path, path),
        ("convert-chat", tmp_path / "rows*", path),
        ("convert-chat", path, link),
        ("make-tool-data", tools, tools),
        ("make-tool-data", tools, tmp_path / "tools.jsonl"),  # whose statement is tools
    ):
        before = path.read_text(), tools.read_text()
        with pytest.raises(AliaError, match="is read here"):
            alia(command, source, "--output", output, "--overwrite")
        assert (path.read_text(), tools.read_text()) == before


def test_a_statement_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "made.jsonl.json").write_text("mine")
    made = ["make-tool-data", "invented:3", "--count", 3]
    made += ["--output", tmp_path / "made.jsonl"]
    with pytest.raises(AliaError, match="exists already"):
        alia(*made)
    assert (tmp_path / "made.jsonl.json").read_text() == "mine"


def test_an_output_is_no_other_file_even_with_overwrite(tmp_path: Path) -> None:
    """Neither what is read, under whatever name, nor what is called otherwise, nor a device."""
    path = rows(tmp_path)
    before, link = path.read_bytes(), tmp_path / "link.jsonl"
    link.symlink_to(path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "run.yaml").write_text("mine")
    tools = tmp_path / "tools.json"
    tools.write_text("[]")
    for command, source, output, told in (
        ("convert-chat", path, path, "is read here"),
        ("convert-chat", path, link, "is read here"),
        ("convert-chat", path.parent, path, "is read here"),
        ("convert-chat", path, tmp_path / "run.yaml", "is called .jsonl"),
        ("convert-chat", path, "/dev/null", "is called .jsonl"),
        ("convert-chat", path, tmp_path / "pipe.jsonl", "is no file"),
        ("make-tool-data", tools, tools, "is read here"),
        ("make-tool-data", "typer", tmp_path / "run.yaml", "is called .jsonl"),
    ):
        with pytest.raises(AliaError, match=told):
            alia(command, source, "--output", output, "--overwrite")
    assert path.read_bytes() == before and link.is_symlink()
    assert (tmp_path / "run.yaml").read_text() == "mine" and Path("/dev/null").exists()
    assert not Path("/dev/null").is_file() and tools.read_text() == "[]"


def test_made_conversations_are_conversations(tmp_path: Path) -> None:
    output = tmp_path / "made.jsonl"
    options = ("--count", 40, "--languages", "eu,gl", "--kinds", "single,missing")
    text = alia("make-tool-data", "typer", "--output", output, *options)
    assert "40 conversations from " in text
    assert "40 conversations" in alia("convert-chat", output, "--strict", "-n", 0)
    for words, told in (
        (["--languages", "xx"], "--languages=xx"),
        (["--kinds", "single,odd"], "--kinds=odd"),
    ):
        with pytest.raises(AliaError, match=told):
            alia("make-tool-data", "typer", "--output", tmp_path / "x.jsonl", *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--kinds", ""], r"--kinds='': names none where one is needed; choose among"),
        (["--languages", "en,"], r"--languages='en,': names none where one is needed"),
        (["--model", ""], r"--model='': is no address; give it as http"),
        (["--model-name", "x"], r"--model-name=x: is of no endpoint; give its endp"),
        (["--output", ""], r"--output=\.: is a directory"),
        (["--output", "."], r"--output=\.: is a directory"),
        ([""], "a source is empty; give a package's name"),
    ],
)
def test_making_says_what_is_wrong_with_an_option(
    words: list[str], told: str, tmp_path: Path
) -> None:
    output = ["--output", tmp_path / "x.jsonl"] if "--output" not in words else []
    with pytest.raises(AliaError, match=told):
        alia("make-tool-data", "typer", *output, *words)
    assert not [*tmp_path.iterdir()]


def test_tokenize_and_pack_a_source_of_conversations(tmp_path: Path) -> None:
    path = rows(tmp_path)
    config_path = write_run(tmp_path)
    config = yaml.safe_load(config_path.read_text())
    config["tokenizer"] = str(save_chat_tokenizer("byte level", tmp_path / "t"))
    config["model"]["vocab_size"] = 512
    config["data"] = {
        "sources": {"chat": {"inputs": [str(path)], "chat": {"max_tokens": 4000}}},
        "workers": 1,
    }
    del config["stages"]["long"]
    for stage in config["stages"].values():
        stage.update(context=4096, tokens=8192, update_tokens=4096)
        stage["pack"] = {"policy": "best_fit", "long_docs": "drop"}
    config_path.write_text(yaml.safe_dump(config))
    alia("tokenize", config_path, "--source", "chat")
    store = TokenStore(tmp_path / "out" / "tokens" / "chat")
    assert store.n_documents == 16
    assert store.weights is not None
    assert 0 < int(store.weights.sum()) < store.n_tokens
    alia("pack", config_path, "--stage", "short")
    changed = "data.sources.chat.chat.train_on=last_turn"
    with pytest.raises(AliaError, match="train_on: assistant there, last_turn now"):
        alia("pack", config_path, changed, "--stage", "short")
    with pytest.raises(AliaError, match=r"data\.sources\.chat\.chat\.template=none"):
        alia("check", config_path, "data.sources.chat.chat.template=none")
    with pytest.raises(AliaError, match=r"chat\.train_on"):
        alia("check", config_path, "data.sources.chat.chat.train_on=users")
