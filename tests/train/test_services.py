"""TensorBoard, W&B and MLflow over resumes, and where a stage is begun anew."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.train.metrics_log import flatten
from alia_ctx.train.sinks import open_sinks

LINE = {
    "update": 3,
    "loss": 2.5,
    "loss_by_source": {"web": 2.0},
    "applied": True,
    "rows": [1, 2],
}


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


def test_tensorboard_shows_no_point_twice_after_a_resume(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    for first, last, loss in ((1, 5, 9.0), (3, 6, 2.0)):
        about = (tmp_path, "run", "stage", {}, pytest.fail)
        [sink] = open_sinks(["tensorboard"], *about, first - 1)
        for step in range(first, last + 1):
            sink.write(step, {"loss": loss})
        sink.close()
        time.sleep(1.1)  # its files are called by the second
    shown = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    points = [(point.step, point.value) for point in shown.Scalars("loss")]
    assert points == [(1, 9.0), (2, 9.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0)]


# As W&B's service: a run that goes on (`resume="allow"` and an id that it knows) has a
# step, and what is logged at a lower one is dropped without an error.
WANDB = """
import json, pathlib

class Run:
    def __init__(self, file):
        self.file = file
        self.points = json.loads(file.read_text()) if file.is_file() else []
        self.step = self.points[-1][0] + 1 if self.points else 0

    def log(self, values, step):
        if step >= self.step:
            self.points.append([step, values["loss"]])
            self.step = step

    def finish(self):
        self.file.write_text(json.dumps(self.points))

def init(*, project, name, id, resume, dir, config):
    assert resume == "allow" and not set(id) & set("/\\\\#?%:")
    service = pathlib.Path(__file__).parent / "service"
    service.mkdir(exist_ok=True)
    return Run(service / id)
"""
# As MLflow: a run of a given id goes on, and what is logged is shown.
MLFLOW = """
import json, pathlib, types

SERVICE = pathlib.Path(__file__).parent / "service"
set_tracking_uri = set_experiment = lambda name: None

def start_run(run_id, run_name):
    global file
    SERVICE.mkdir(exist_ok=True)
    if run_id is None:
        run_id = str(len(list(SERVICE.iterdir())))
        (SERVICE / run_id).write_text("[]")
    file = SERVICE / run_id
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

def log_metrics(values, step):
    points = json.loads(file.read_text())
    file.write_text(json.dumps([*points, [step, values["loss"]]]))

def end_run():
    pass

class MlflowClient:
    def get_metric_history(self, run_id, name):
        points = json.loads((SERVICE / run_id).read_text())
        return [types.SimpleNamespace(step=step) for step, _ in points]
"""
SERVICES = {"wandb": WANDB, "mlflow": MLFLOW}


@pytest.fixture(params=SERVICES)
def service(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The name of a sink whose package is a recorder with the service's own rules."""
    name: str = request.param
    (tmp_path / f"{name}.py").write_text(SERVICES[name])
    monkeypatch.syspath_prepend(tmp_path)
    # So that what the test imports is taken out again.
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]
    return name


def shown(sink: str, directory: Path, first: int, last: int, loss: float) -> Any:
    """Train updates `first` to `last`; then the points of every run of the service, the
    oldest first.
    """
    directory.mkdir(exist_ok=True)
    about = (directory, "run", "stage", {}, pytest.fail)
    [writer] = open_sinks([sink], *about, first - 1)
    for step in range(first, last + 1):
        writer.write(step, {"loss": loss})
    writer.close()
    runs = sorted(
        directory.parent.glob("service/*"), key=lambda f: f.stat().st_mtime_ns
    )
    return [json.loads(run.read_text()) for run in runs]


def points(first: int, last: int, loss: float) -> list[list[float]]:
    return [[step, loss] for step in range(first, last + 1)]


def test_a_service_shows_no_point_twice_after_a_resume(
    service: str, tmp_path: Path
) -> None:
    stage = tmp_path / "stage"
    shown(service, stage, 1, 5, 9.0)
    runs = shown(service, stage, 3, 6, 2.0)
    assert runs == [[*points(1, 5, 9.0), [6, 2.0]]]


@pytest.mark.parametrize("again", ["stage", "elsewhere"])
def test_a_stage_that_is_begun_anew_loses_no_point(
    service: str, again: str, tmp_path: Path
) -> None:
    """In the same directory or another, under the same names; and it goes on."""
    shown(service, tmp_path / "stage", 1, 5, 9.0)
    shown(service, tmp_path / again, 1, 3, 2.0)
    runs = shown(service, tmp_path / again, 4, 7, 2.0)
    assert runs == [points(1, 5, 9.0), points(1, 7, 2.0)]


def test_a_wandb_run_of_an_earlier_release_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    del sys.modules["wandb"]
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "run-stage").write_text(json.dumps(points(1, 4, 9.0)))
    runs = shown("wandb", tmp_path / "stage", 4, 5, 2.0)
    assert runs == [[*points(1, 4, 9.0), [5, 2.0]]]


def test_tensorboard_shows_the_stage_that_was_begun_last(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    for last, loss in ((5, 9.0), (3, 2.0)):
        about = (tmp_path, "run", "stage", {}, pytest.fail)
        [sink] = open_sinks(["tensorboard"], *about, 0)
        for step in range(1, last + 1):
            sink.write(step, {"loss": loss})
        sink.close()
        time.sleep(1.1)  # its files are called by the second
    read = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(p.step, p.value) for p in read.Scalars("loss")] == [
        (1, 2.0),
        (2, 2.0),
        (3, 2.0),
    ]
