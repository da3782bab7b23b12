"""What only the end of a run would refuse is refused before anything is done: by `check`,
and at the start of `run`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.errors import ConfigError
from alia_ctx.hf.targets import begin_export, finish_building, write_statement
from tests.small_run import write_run
from tests.workflow.scenarios import Run


def an_edited_card(run: Run) -> str:
    """As an author completes it, in an export that is otherwise as it was written."""
    directory = run.output / "hf/long"
    directory.parent.mkdir(parents=True)
    begun = begin_export(directory)
    (begun / "README.md").write_text("card")
    (begun / "alia_ctx_incomplete").touch()
    write_statement(begun, {}, {}, {})
    finish_building(begun)
    begun.rename(directory)
    workflow.check_end(run.config(), run.path)  # as written it is no problem
    (directory / "README.md").write_text("completed by its author")
    return "README.md was changed since"


def a_linked_tokenizer(run: Run) -> str:
    file = Path(run.config().tokenizer) / "tokenizer.json"
    file.rename(run.folder / "elsewhere.json")
    file.symlink_to(run.folder / "elsewhere.json")
    return "tokenizer.json: is a link to"


def a_broken_file(run: Run) -> str:
    (Path(run.config().tokenizer) / "generation_config.json").write_text("{")
    return "generation_config.json"


def somebodys_model(run: Run) -> str:
    (run.output / "hf/long").mkdir(parents=True)
    (run.output / "hf/long/model.safetensors").write_text("mine")
    return "only what a conversion wrote is overwritten"


def a_linked_export(run: Run) -> str:
    (run.output / "hf").mkdir(parents=True)
    (run.output / "hf/long").symlink_to(run.folder)
    return "is a link to"


def a_backup_in_the_way(run: Run) -> str:
    (run.output / "hf/long.incomplete").mkdir(parents=True)
    (run.output / "hf/long.incomplete/config.json").write_text("mine")
    return "long.incomplete: is in the way"


def a_file_for_a_folder(run: Run) -> str:
    run.output.mkdir()
    (run.output / "report").write_text("mine")
    return "report is no directory"


@pytest.mark.parametrize(
    "change",
    [
        an_edited_card,
        a_linked_tokenizer,
        a_broken_file,
        somebodys_model,
        a_linked_export,
        a_backup_in_the_way,
        a_file_for_a_folder,
    ],
)
def test_it_is_said_before_anything_is_done(
    change: Callable[[Run], str], tmp_path: Path
) -> None:
    run = Run(write_run(tmp_path), tmp_path / "run")
    run.folder.mkdir()
    said = change(run)
    with pytest.raises(ConfigError, match=said):
        workflow.check_end(run.config(), run.path)
    before = sorted(run.folder.rglob("*"))
    assert said in run.run() and run.started == []
    assert sorted(run.folder.rglob("*")) == before


def test_a_place_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the system answers: to root it refuses nothing."""
    run = load_run(write_run(tmp_path))
    (tmp_path / "out/hf").mkdir(parents=True)
    workflow.check_end(run, "run.yaml")
    may: Any = os.access
    monkeypatch.setattr(
        os, "access", lambda p, mode: Path(p).name != "hf" and may(p, mode)
    )
    with pytest.raises(ConfigError, match="out/hf cannot be written"):
        workflow.check_end(run, "run.yaml")
