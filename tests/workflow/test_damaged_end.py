"""The last checkpoint of a finished stage is damaged: whatever would be made from it names
the one command that mends it, and `run` gives it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint, workflow
from alia_ctx.workflow.chain import run_directory
from tests.small_run import state_checksums
from tests.workflow.scenarios import Run, message


def flip(path: Path) -> None:
    file = max((path / "state").glob("*.distcp"), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def lose_metadata(path: Path) -> None:
    (path / "state/.metadata").unlink()


def edit(path: Path) -> None:
    document = json.loads((path / "manifest.json").read_text())
    document["context"] = 128
    (path / "manifest.json").write_text(json.dumps(document))


def nest(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 100_000)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flip": flip,
    "lose": lose_metadata,
    "edit": edit,
    "nest": nest,
}
SAVES = "checkpoint.every_updates=1"


def last(run: Run, stage: str) -> Path:
    path = checkpoint.latest(run_directory(run.config()).checkpoints(stage))
    assert path is not None
    return path


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    first = Run(Path(folder, "run.yaml"), Path(folder, "first"))
    seen: dict[str, Any] = {"first": first.run(SAVES)}
    for name, damage in DAMAGES.items():
        run = Run(first.path, Path(folder, name), like=first)
        shutil.rmtree(run.output / "stages/long")
        shutil.rmtree(run.output / "evaluation")
        damage(last(run, "short"))
        before = run.files()
        config = run.config(SAVES)
        seen[name] = {
            "evaluate": message(lambda c=config: _evaluate_anew(c)),
            "export": message(lambda c=config: _export_anew(c)),
            "next stage": run.train("long", SAVES),
            "left": run.files() == before,
            "train": run.train("short", SAVES),
            "same": state_checksums(last(run, "short"))
            == state_checksums(last(first, "short")),
        }
        run = Run(first.path, Path(folder, f"{name} run"), like=first)
        shutil.rmtree(run.output / "stages/long")
        damage(last(run, "short"))
        seen[name]["run"] = run.run(SAVES), list(run.started)
    unread = Run(first.path, Path(folder, "unread"), like=first)
    flip(last(unread, "short"))
    before = unread.files()
    seen["unread"] = unread.run(SAVES), list(unread.started), unread.files() == before
    flip(last(unread, "long"))
    shutil.rmtree(unread.output / "hf")
    seen["export"] = unread.run(SAVES), list(unread.started)
    shutil.rmtree(unread.output / "evaluation")
    seen["evaluate"] = unread.run(SAVES), list(unread.started)
    return seen


def _evaluate_anew(config: Any) -> None:
    workflow.measure_models(workflow.evaluation_task(config, ["short"]))


def _export_anew(config: Any) -> None:
    run_directory(config).hf_note("short").unlink(missing_ok=True)
    workflow.export(config, "short")


def test_the_run_to_copy_is_finished(seen: dict[str, Any]) -> None:
    assert seen["first"] == ""


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("step", ["evaluate", "export", "next stage"])
def test_what_is_made_from_it_names_the_command_that_mends_it(
    step: str, name: str, seen: dict[str, Any]
) -> None:
    said = seen[name][step]
    assert said.startswith("DamagedError: ") and "update-00000004" in said
    assert "`alia-ctx train CONFIG --stage short` goes on from the newest" in said


@pytest.mark.parametrize("name", DAMAGES)
def test_a_refusal_changes_nothing_and_the_command_mends_it(
    name: str, seen: dict[str, Any]
) -> None:
    assert seen[name]["left"]
    assert seen[name]["train"] == "" and seen[name]["same"]


@pytest.mark.parametrize("name", DAMAGES)
def test_run_mends_what_the_next_stage_starts_from(
    name: str, seen: dict[str, Any]
) -> None:
    said, started = seen[name]["run"]
    assert said == ""
    assert started[:2] == ["train --stage short", "train --stage long"]


def test_run_mends_what_it_reads_and_nothing_else(seen: dict[str, Any]) -> None:
    assert seen["unread"] == ("", [], True)
    assert seen["export"] == ("", ["train --stage long"])
    assert seen["evaluate"] == ("", ["train --stage short", "evaluate"])
