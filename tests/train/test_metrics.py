"""Writers of metrics: what they hold, and what happens when one of them cannot go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from alia_ctx.errors import ConfigError
from alia_ctx.train import sinks
from alia_ctx.train.metrics import JsonLines, flatten
from alia_ctx.train.sinks import open_sinks

LINE = {
    "update": 3,
    "loss": 2.5,
    "loss_by_source": {"web": 2.0},
    "applied": True,
    "rows": [1, 2],
}


class Breaks:
    """A writer whose service goes away after one step."""

    def __init__(self, *about: object) -> None:
        self.steps: list[int] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self.steps:
            raise ConnectionError("gone\nand more")
        self.steps.append(step)

    def close(self) -> None:
        raise ConnectionError("gone")


def test_a_writer_that_fails_is_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sinks, "_TensorBoard", Breaks)
    [sink] = open_sinks(["tensorboard"], tmp_path, "run", "stage", {}, said.append)
    for step in (1, 2, 3):
        sink.write(step, {"loss": 1.0})
    sink.close()
    assert said == [
        "tensorboard failed (ConnectionError: gone); metrics.jsonl has what it lacks from here on"
    ]


def test_a_writer_that_does_not_start_is_a_mistake_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*about: object) -> None:
        raise RuntimeError("no key")

    monkeypatch.setattr(sinks, "_TensorBoard", refuse)
    with pytest.raises(
        ConfigError,
        match=r"metrics.sinks=tensorboard: does not start \(RuntimeError: no key\); set it up",
    ):
        open_sinks(["tensorboard"], tmp_path, "run", "stage", {}, print)


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines._stream.close()
    lines._stream = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        lines.append(LINE)
    lines.close()


def test_mlflow_goes_on_with_the_run_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "mlflow", reason="mlflow is not installed; pip install 'alia-ctx[mlflow]'"
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step in (1, 2):  # the second time as after a resume
        [sink] = open_sinks(["mlflow"], tmp_path, "run", "stage", {}, pytest.fail)
        sink.write(step, flatten(LINE))
        sink.close()
    [losses] = tmp_path.glob("mlruns/*/*/metrics/loss")
    assert [line.split()[1:] for line in losses.read_text().splitlines()] == [
        ["2.5", "1"],
        ["2.5", "2"],
    ]


def test_wandb_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "wandb", reason="wandb is not installed; pip install 'alia-ctx[wandb]'"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    [sink] = open_sinks(["wandb"], tmp_path, "run", "stage", {}, pytest.fail)
    sink.write(1, flatten(LINE))
    sink.close()
    [written] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"loss_by_source/web" in written.read_bytes()
