"""Writers of metrics: what they hold, and what happens when one of them cannot go on."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.errors import ConfigError
from alia_ctx.train import metrics_log, sinks
from alia_ctx.train.metrics_log import JsonLines, LogError, flatten, read_lines
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


# -- metrics.jsonl over resumes --------------------------------------------------------


def text(update: int, loss: float = 2.5) -> bytes:
    return json.dumps({"update": update, "loss": loss}).encode() + b"\n"


def reopen(path: Path, resume_at: int) -> tuple[list[int], list[str]]:
    """(updates of the lines gone on from, what was said)."""
    said: list[str] = []
    lines = JsonLines(path, resume_at, said.append)
    lines.close()
    return [line["update"] for line in lines.kept], said


def aside(path: Path, why: str) -> bytes:
    file = path.with_name(f"{path.name}.{why}")
    return file.read_bytes() if file.is_file() else b""


BROKEN = {
    "cut off": text(3)[:9] + b"\n",
    "of zeros": b"\0" * 40 + b"\n",
    "no JSON": b"Traceback: boom\n",
    "no update": b'{"loss": 1.0}\n',
    "another type": b"[3]\n",
    "no UTF-8": b'{"update": 3, "loss": "\xff"}\n',
    "nested without end": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_line_takes_no_other_with_it(how: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = {update: text(update) for update in range(1, 8)}
    path.write_bytes(b"".join({**whole, 3: BROKEN[how]}.values()))
    kept, said = reopen(path, 7)
    assert kept == [1, 2, 4, 5, 6, 7]
    assert path.read_bytes() == b"".join(whole[n] for n in kept)
    assert aside(path, "broken") == BROKEN[how]
    assert any(
        "line 3 was not whole" in s and "metrics.jsonl.broken" in s for s in said
    )
    assert any("no line of 1 of the first 7" in s for s in said)


def test_lines_of_updates_done_again_move_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(text(n) for n in range(1, 8)))
    assert reopen(path, 4) == ([1, 2, 3, 4], [])
    assert path.read_bytes() == b"".join(text(n) for n in range(1, 5))
    assert aside(path, "superseded") == b"".join(text(n) for n in (5, 6, 7))


def test_beginning_anew_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b"".join(text(n) for n in range(1, 8))
    path.write_bytes(before)
    assert reopen(path, 0) == ([], [])
    assert aside(path, "superseded") == before
    path.write_bytes(text(1, 9.0))
    reopen(path, 0)
    assert aside(path, "superseded") == before + text(1, 9.0)


def test_a_cut_off_last_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text(1) + text(2).rstrip(b"\n"))  # whole but for its end
    lines = JsonLines(path, 2)
    lines.append({"update": 3, "loss": 1.0})
    lines.close()
    assert [line["update"] for line in read_lines(path)] == [1, 2, 3]


def test_a_log_that_is_in_order_is_only_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text(1) + text(2))
    inode = path.stat().st_ino
    assert reopen(path, 2) == ([1, 2], [])
    assert path.stat().st_ino == inode


@given(
    written=st.lists(
        st.integers(1, 9).map(text)
        | st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"") + b"\n")
    ),
    resume_at=st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_every_line_ever_written_is_somewhere(
    written: list[bytes], resume_at: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        path.write_bytes(b"".join(written))
        kept, _ = reopen(path, resume_at)
        places = (path.read_bytes(), aside(path, "superseded"), aside(path, "broken"))
        now = b"".join(places).split(b"\n")
        assert sorted(filter(bytes.strip, now)) == sorted(
            filter(bytes.strip, b"".join(written).split(b"\n"))
        )
        assert len(kept) == len(set(kept)) and all(n <= resume_at for n in kept)
        assert set(kept) == {n for n in range(1, resume_at + 1) if text(n) in written}
        assert reopen(path, resume_at)[0] == kept, "a second time changes nothing"
        assert path.read_bytes() == places[0]


class Flaky:
    """A first reading of a file that fails, or comes back short."""

    def __init__(self, first: Callable[[bytes], bytes]) -> None:
        self.first, self.calls = first, 0
        self.original = Path.read_bytes

    def __call__(self, path: Path) -> bytes:
        self.calls += 1
        data = self.original(path)
        return self.first(data) if self.calls == 1 else data


def _fail(error: int) -> Callable[[bytes], bytes]:
    def fail(data: bytes) -> bytes:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize(
    "first",
    [_fail(errno.EIO), _fail(errno.ESTALE), _fail(errno.EACCES), lambda d: d[:100]],
    ids=["EIO", "ESTALE", "EACCES", "short"],
)
def test_one_failed_reading_changes_nothing(
    first: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b"".join(text(n) for n in range(1, 8))
    path.write_bytes(before)
    flaky = Flaky(first)
    monkeypatch.setattr(Path, "read_bytes", lambda self: flaky(self))
    with pytest.raises(LogError, match=r"metrics\.jsonl.*nothing was changed"):
        JsonLines(path, 7)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert path.read_bytes() == before


def test_a_log_that_is_not_seen_for_a_moment_is_not_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b"".join(text(n) for n in range(1, 8))
    path.write_bytes(before)
    flaky = Flaky(_fail(errno.ENOENT))
    monkeypatch.setattr(Path, "read_bytes", lambda self: flaky(self))
    said: list[str] = []
    lines = JsonLines(path, 7, said.append)
    lines.append({"update": 8, "loss": 1.0})
    lines.close()
    assert [line["update"] for line in read_lines(path)] == list(range(1, 9))
    assert any("no line of 7 of the first 7" in s for s in said)


def test_killed_between_moving_aside_and_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(text(n) for n in range(1, 8)))

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metrics_log, "atomic_file", killed)
        JsonLines(path, 4)
    assert reopen(path, 4)[0] == [1, 2, 3, 4]
    assert aside(path, "superseded") == b"".join(text(n) for n in (5, 6, 7))
