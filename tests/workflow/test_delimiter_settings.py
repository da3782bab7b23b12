"""What a configuration puts around documents, beside what its tokenizer does by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_run
from alia_ctx.workflow import delimiter_notes
from tests.small_run import write_run
from tests.text_data import write_jsonl
from tests.tokenizers import byte_level, save, with_template


def _overrides(folder: Path, template: bool, bos: bool, eos: bool) -> list[str]:
    tokenizer = byte_level()
    save(with_template(tokenizer) if template else tokenizer, folder / "own")
    source = write_jsonl(folder / "source.jsonl", ["one text", "another text"])
    return [
        f"tokenizer={folder / 'own'}",
        "model.vocab_size=512",
        f"data.sources={{text: {{inputs: [{source}]}}}}",
        f"data.prepend_bos={str(bos).lower()}",
        f"data.append_eos={str(eos).lower()}",
        "evaluation.held_out=null",
    ]


@pytest.mark.parametrize(
    ("template", "bos", "eos", "said"),
    [
        (False, False, True, []),
        (False, False, False, []),
        (False, True, True, ["data.prepend_bos: true, and"]),
        (True, True, True, []),
        (
            True,
            False,
            True,
            ["data.prepend_bos: false, and the tokenizer by itself puts <s>"],
        ),
        (
            True,
            True,
            False,
            ["data.append_eos: false, and the tokenizer by itself puts </s>"],
        ),
    ],
)
def test_what_differs_is_told(
    template: bool, bos: bool, eos: bool, said: list[str], tmp_path: Path
) -> None:
    path, settings = write_run(tmp_path), _overrides(tmp_path, template, bos, eos)
    notes = delimiter_notes(load_run(path, settings))
    assert len(notes) == len(said)
    assert all(note.startswith(begin) for note, begin in zip(notes, said, strict=True))


def test_conversations_and_stores_that_are_there_are_not_judged(tmp_path: Path) -> None:
    path, settings = write_run(tmp_path), _overrides(tmp_path, False, True, True)
    text = settings.pop(2)
    assert delimiter_notes(load_run(path, [*settings, "stages.short.tokens=512"])) == []
    chat = text.replace("]}", "], chat: {}}")
    assert delimiter_notes(load_run(path, [*settings, chat])) == []


@pytest.mark.parametrize("command", ["check", "tokenize", "pack"])
def test_each_command_that_reads_the_text_tells_it_once(
    command: str, tmp_path: Path
) -> None:
    path, settings = write_run(tmp_path), _overrides(tmp_path, False, True, True)
    settings += ["stages.short.tokens=512", "stages.short.update_tokens=64"]
    run = CliRunner().invoke
    if command == "pack":
        assert run(app, ["tokenize", str(path), *settings]).exit_code == 0
    stage = ["--stage", "short"] if command == "pack" else []
    made = run(app, [command, str(path), *settings, *stage], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    assert made.output.count("note: data.prepend_bos: true") == 1
