"""How the recipe of SmolLM2 ends: in an error where its proof fails, when the page is
written; and in one line where a person or a disk refuses it, before anything is made.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from alia_ctx.errors import DataError
from alia_ctx.files import exclusive
from alia_ctx.report import run_page
from scripts.smollm2 import __main__ as command
from scripts.smollm2 import by_transformers, proof
from scripts.smollm2.proof import Proof, evaluated, interrupted
from scripts.smollm2.sizes import SMALL
from scripts.smollm2.steps import Steps as RealSteps
from tests.report.made_facts import bands, cells, run
from tests.report.test_page import Reader

# --- the proof -----------------------------------------------------------------------


def _measured(at: Path, share: float = 1.0) -> Path:
    file = at / "passkey-5120.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"content": cells(share, (2560, 5120))}))
    return file


def _found(right: int = 4) -> dict[str, list[int]]:
    grid = (f"{n}:{depth}" for n in (2560, 5120) for depth in range(10))
    return {cell: [right, 4] for cell in grid}


@pytest.mark.parametrize(
    "found, verdict",
    [
        (_found(), "yes"),
        (_found(0), "no"),
        ({**_found(), "5120:3": [3, 4]}, "no"),
        ({**_found(), "5120:3": [4, 5]}, "no"),  # another count of questions
        ({**_found(), "1280:3": [4, 4]}, "no"),  # nothing was measured there
        ({}, "not known"),
    ],
)
def test_what_transformers_answers_is_in_the_page_and_decides(
    found: dict[str, list[int]], verdict: str, tmp_path: Path
) -> None:
    compared = by_transformers.compare(found, _measured(tmp_path))
    document = by_transformers.as_document(compared, "make it")
    words = Reader(run_page(run(beside=[document]))).words
    assert f"in transformers as was measured: {verdict}" in words
    if verdict == "yes":
        by_transformers.require_agreement(compared, "page")
        assert "5,120 40 of 40 40 of 40" in words
    else:
        with pytest.raises(DataError, match=r"see page; do not use|nothing is proven"):
            by_transformers.require_agreement(compared, "page")
    if found == _found(0):
        assert "5,120 0 of 40 40 of 40" in words


class Steps:
    """Stands for the commands: notes which were given."""

    def __init__(self, output: Path) -> None:
        self.output, self.settings, self.longest = output, ["config"], 5120
        self.stages, self.run = ["32k", "160k"], None
        self.given: list[str] = []

    def command(self, *words: object, **options: object) -> None:
        self.given.append(str(words[0]))

    def newest(self, stage: str) -> Path:
        return self.output / stage

    def note(self, *words: object) -> None: ...


@pytest.mark.parametrize("right", [4, 0])
def test_a_disagreement_ends_in_an_error_when_the_page_is_there(
    right: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Directory:
        evaluations, report = tmp_path / "evaluation", tmp_path / "report"

    _measured(Directory.evaluations / "160k")
    (tmp_path / "interruption.json").write_text(json.dumps(INTERRUPTION))
    monkeypatch.setattr(proof, "run_directory", lambda run: Directory)
    monkeypatch.setattr(
        by_transformers, "answer_passkeys", lambda *arguments: _found(right)
    )
    monkeypatch.setattr(Proof, "_short_text", lambda self, last: None)
    written: list[str] = []
    monkeypatch.setattr(Proof, "_write", lambda self, name, *_: written.append(name))
    steps = Steps(tmp_path)
    if right == 4:
        Proof(steps).prove()  # type: ignore[arg-type]
    else:
        with pytest.raises(
            DataError, match=r"5,120: transformers 0 of 40.*index\.html"
        ):
            Proof(steps).prove()  # type: ignore[arg-type]
    assert steps.given[-1] == "report"
    assert written == ["passkeys-by-transformers", "interruption"]


def test_a_command_that_fails_ends_with_its_status_after_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By programs in place of alia-ctx: one that fails, and one that prints no document."""
    steps = RealSteps(tmp_path, 1, SMALL)

    def runs(code: str) -> None:
        program = [sys.executable, "-c", code]
        monkeypatch.setattr(steps, "_python", lambda words, on_ranks: program)

    runs("import sys; sys.exit(3)")
    with pytest.raises(typer.Exit) as ended:
        steps.command("import-hf", hint="remove the weights")
    assert ended.value.exit_code == 3
    assert "remove the weights" in capfd.readouterr().err
    runs("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(typer.Exit) as ended:
        steps.command("train")
    assert ended.value.exit_code == 137
    runs("import sys; print('why'); sys.exit(2)")
    with pytest.raises(typer.Exit) as ended:
        steps.document("evaluate")
    assert ended.value.exit_code == 2 and "why" in capfd.readouterr().err
    runs("print('{}'); print('and more')")
    with pytest.raises(DataError, match="printed no document"):
        steps.document("evaluate")
    runs("print('{\"a\": 1}')")
    assert steps.document("evaluate") == {"a": 1}


INTERRUPTION: dict[str, Any] = {
    "went_on_after": 50,
    "before": {"loss": {"mean": 0.016, "greatest": 0.11}},
    "after": {"loss": {"mean": 0.005, "greatest": 0.035}},
}


def test_what_a_kill_changed_is_a_table() -> None:
    words = Reader(run_page(run(beside=[interrupted(INTERRUPTION)]))).words
    assert "A kill, gone on with after update 50" in words
    assert "loss after 5.0e-03 3.5e-02" in words


def test_what_evaluate_prints_as_json_is_tables() -> None:
    def result(name: str, evaluator: str, content: Any, **more: Any) -> dict[str, Any]:
        made_from = {"model": {"name": name}, "context": 5120, "settings": {}}
        about = {"name": name, "evaluator": evaluator, "made_from": made_from}
        return {**about, "content": content, "reason": None, **more}

    ruler = {**cells(0.5, (5120,), "niah_single_1"), "native_context": 128}
    ruler["left_out"] = {"vt": "it does not fit"}
    found = {
        "native_context": 128,
        "notes": ["a note"],
        "verdicts": ["it costs nothing"],
        "results": [
            result("base", "positions", bands(3.0, 3.2).to_json()),
            result("base", "retrieval", ruler),
            result("160k", "positions", bands(2.5, 2.25).to_json()),
            result("160k", "retrieval", None, reason="it is too short"),
        ],
    }
    document = evaluated("Short text", found)
    assert document.notes == [
        *("it costs nothing", "a note"),
        "not measured: 160k, retrieval: it is too short",
        "not measured: base, vt: it does not fit",
    ]
    losses, *_, by_task = document.tables
    assert [row[0] for row in losses.rows] == ["base", "160k"]
    assert all(len(row) == len(losses.headings) for row in losses.rows)
    assert by_task.headings == ["task", "base"]
    assert by_task.rows[0][0] == "niah_single_1" and "50" in by_task.rows[0][1]
    words = Reader(run_page(run(beside=[document]))).words
    assert "it costs nothing" in words and "too short" in words


# --- refusals ------------------------------------------------------------------------


def _start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: object
) -> str:
    """What a start says on standard error that ends with status 2."""
    monkeypatch.setattr("sys.argv", ["smollm2", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command.start()
    assert ended.value.code == 2
    return capfd.readouterr().err


def test_an_output_that_is_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a file"
    file.touch()
    said = _start(monkeypatch, capfd, "--small", "--output", file)
    assert str(file) in said and "run it again" in said


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("step", ["fetch_weights", "write_corpus", "write_retrieval"])
def test_what_a_disk_refuses_is_a_line(
    step: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refused(*given: object, **options: object) -> str:
        raise OSError(code, "the disk says no", "somewhere")

    steps = ["fetch_weights", "write_corpus", "write_retrieval"]
    for name in steps[: steps.index(step)]:
        monkeypatch.setattr(command, name, lambda *given, **options: "made")
    monkeypatch.setattr(command, step, refused)
    said = _start(monkeypatch, capfd, "--small", "--output", tmp_path / "out")
    assert "somewhere: the disk says no; make room" in said


def test_a_fault_of_the_program_is_none_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*given: object, **options: object) -> str:
        raise OSError("not of a file system")

    monkeypatch.setattr(command, "fetch_weights", faulty)
    monkeypatch.setattr(
        "sys.argv", ["smollm2", "--small", "--output", str(tmp_path / "out")]
    )
    with pytest.raises(OSError, match="not of a file system"):
        command.start()


def test_a_second_start_is_told_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with exclusive(tmp_path / "out", "make smollm2"):
        said = _start(monkeypatch, capfd, "--small", "--output", tmp_path / "out")
    assert "`make smollm2` (pid" in said and "is writing to it" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, told",
    [
        (("--interrupt", "99", "--ranks", "2"), "name one from 2 to 3"),
        (("--interrupt", "2", "--ranks", "1"), "--ranks 2 or more"),
        (("--manuals", "/nowhere"), "has no manuals.jsonl"),
        (("--ranks", "3"), "--ranks 3 does not cut rows evenly"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    words: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = _start(monkeypatch, capfd, "--small", "--output", tmp_path / "out", *words)
    assert told in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_an_interruption_that_the_start_does_not_reach_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def ends(*given: object, **options: object) -> str:
        raise DataError("the end of this test")

    monkeypatch.setattr(command, "fetch_weights", ends)
    words = ("--interrupt", "2", "--ranks", "2", "--until", "prepared")
    said = _start(monkeypatch, capfd, "--small", "--output", tmp_path / "out", *words)
    assert "--until prepared ends before the stage" in said
