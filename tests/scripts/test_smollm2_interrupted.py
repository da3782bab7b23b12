"""The recipe of SmolLM2, killed on purpose: what is compared is what was asked for, nothing
is lost, and what cannot be is refused before anything is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.config.load import load_plan
from alia_ctx.errors import DataError
from scripts.smollm2.interruption import choose_kill, require_resumed
from scripts.smollm2.sizes import CONFIG, SMALL
from scripts.smollm2.steps import Steps
from tests.scripts.test_smollm2 import _model


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    made = Steps(tmp_path, 2, SMALL)
    settings = [*made.settings[1:], *_model()]
    made.run = load_plan(CONFIG, settings)[0]  # as it is once all is prepared
    return made


def _line(update: int, time: str) -> dict[str, Any]:
    return {"update": update, "loss": 1.0, "gradient_norm": 1.0, "time": time}


class Trainer:
    """Stands for the commands: writes logs, and takes up a killed stage or does not."""

    def __init__(self, steps: Steps, resumes: bool, saved: int) -> None:
        self.at = steps.output / "stages" / "32k"
        self.resumes, self.saved, self.cp = resumes, saved, 2
        self.kills: list[int] = []
        steps.killed = self.killed  # type: ignore[assignment]
        steps.command = self.train  # type: ignore[assignment]
        steps.saved = lambda stage: saved  # type: ignore[method-assign]

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self.at.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.at / "metrics.jsonl").write_text(text)

    def killed(
        self, words: object, stage: Path, update: int, ready: Callable[[], bool] = bool
    ) -> None:
        self.kills.append(update)
        self._write([_line(n, "before") for n in range(1, update + 1)])

    def train(self, *words: object, on_ranks: bool) -> None:
        kept = self.saved if self.resumes else 0
        times = ["before" if n <= kept else "after" for n in range(1, 5)]
        lines = [_line(n, time) for n, time in enumerate(times, 1)]
        lines[0]["layout"] = {"cp": 1}  # of the start before the kill
        if kept < len(lines):
            lines[kept]["layout"] = {"cp": self.cp}
        self._write(lines)


def test_a_resume_is_noted_and_one_that_was_none_is_not(
    steps: Steps, tmp_path: Path
) -> None:
    Trainer(steps, resumes=False, saved=2)
    with pytest.raises(DataError, match="update 1 was computed again"):
        steps.train_interrupted(2)
    note = tmp_path / "interruption.json"
    assert not note.exists()
    Trainer(steps, resumes=True, saved=2)
    steps.train_interrupted(2)
    assert json.loads(note.read_text())["went_on_after"] == 2


def test_a_start_that_was_stopped_before_the_kill_kills(
    steps: Steps, tmp_path: Path
) -> None:
    trainer = Trainer(steps, resumes=True, saved=2)
    (tmp_path / "undisturbed").mkdir()
    lines = "".join(json.dumps(_line(n, "x")) + "\n" for n in range(1, 5))
    (tmp_path / "undisturbed" / "metrics.jsonl").write_text(lines)
    trainer._write([_line(1, "stopped")])  # the script ended here
    steps.train_interrupted(2)
    assert trainer.kills == [2]
    assert (tmp_path / "32k.aside-1" / "metrics.jsonl").is_file()


def _choose(output: Path, asked: int, ranks: int = 2) -> int:
    return choose_kill(output, asked, ranks, SMALL.overrides)


def test_a_stage_that_was_begun_without_it_is_not_killed(tmp_path: Path) -> None:
    trained = tmp_path / "stages" / "32k" / "checkpoints" / "update-00000004"
    trained.mkdir(parents=True)
    with pytest.raises(DataError, match="begun without --interrupt; move it away"):
        _choose(tmp_path, 2)
    assert trained.is_dir() and _choose(tmp_path, 0) == 0


def test_what_was_trained_in_between_is_never_deleted(
    steps: Steps, tmp_path: Path
) -> None:
    trained = tmp_path / "stages" / "32k" / "checkpoints" / "update-00000004"
    trained.mkdir(parents=True)
    (tmp_path / "interrupt.json").write_text('{"update": 2, "ranks": 2}')
    Trainer(steps, resumes=True, saved=2)
    steps.train_interrupted(2)
    assert (tmp_path / "32k.aside-1" / "checkpoints" / trained.name).is_dir()


@pytest.mark.parametrize("update", [-1, 1, 4, 99])
def test_an_update_that_no_kill_can_tell_is_refused_at_once(
    update: int, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"has 4; name one from 2 to 3"):
        _choose(tmp_path, update)


def test_one_rank_has_no_other_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--ranks 2 or more"):
        _choose(tmp_path, 2, ranks=1)


def test_a_kill_that_was_begun_is_taken_up_and_no_other(
    steps: Steps, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _choose(tmp_path, 2) == 2
    Trainer(steps, resumes=False, saved=2)
    with pytest.raises(DataError, match="computed again"):
        steps.train_interrupted(2)  # not finished
    assert _choose(tmp_path, 2) == _choose(tmp_path, 0) == 2
    assert "taking up the kill at update 2" in capfd.readouterr().err
    with pytest.raises(DataError, match=r"--interrupt 3: .* killed at update 2"):
        _choose(tmp_path, 3)
    with pytest.raises(DataError, match="name --ranks 2"):
        _choose(tmp_path, 0, ranks=4)
    Trainer(steps, resumes=True, saved=2)
    steps.train_interrupted(2)
    assert _choose(tmp_path, 0) == _choose(tmp_path, 2) == 0
    assert "was done by an earlier start" in capfd.readouterr().err
    with pytest.raises(DataError, match=r"--interrupt 3: .* killed at update 2"):
        _choose(tmp_path, 3)
    (tmp_path / "interrupt.json").write_text("{}")
    with pytest.raises(DataError, match=r"interrupt\.json: is damaged"):
        _choose(tmp_path, 0)


@pytest.mark.parametrize("cp", [1, None])
def test_a_resume_by_another_layout_is_not_compared(
    cp: int | None, steps: Steps, tmp_path: Path
) -> None:
    trainer = Trainer(steps, resumes=True, saved=2)
    trainer.cp = cp  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"by another layout than cp2 \(update 3\)"):
        steps.train_interrupted(2)
    assert not (tmp_path / "interruption.json").exists()


def test_lines_that_were_computed_again_are_found(tmp_path: Path) -> None:
    before = [_line(1, "a"), _line(2, "a")]
    text = (
        json.dumps(_line(1, "a"))
        + "\n"
        + json.dumps({**_line(2, "b"), "layout": {"cp": 4}})
        + "\n"
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    require_resumed(tmp_path, before, 1, 4)
    for kept in (0, 2):
        with pytest.raises(DataError, match="computed again"):
            require_resumed(tmp_path, before, kept, 4)
