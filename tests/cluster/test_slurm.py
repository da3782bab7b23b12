"""A run through a real queue: submitted once, disturbed by all that befalls jobs, and at its
end the same to the bit as one that nothing happened to.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from tests.cluster.slow_cli import GATE, allow
from tests.cluster.slurm import Slurm, missing
from tests.distributed import run_distributed
from tests.paths import ROOT, python_path
from tests.small_run import metrics, state_checksums, write_run

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() != "", reason=f"no SLURM here: {missing()}"),
    pytest.mark.timeout(3600),
]
SAME = ["metrics.sinks=[]", "cluster.nodes=2", "cluster.ranks_per_node=1"]
# Every job is told to save 100 s before its limit. SLURM looks each half minute.
SAVE_SECONDS = 100
KEYS = ("update", "loss", "gradient_norm", "tokens", "predicted_tokens", "rows")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with Slurm() as cluster:
        yield cluster


def undisturbed(rank: int, path: str) -> None:
    run = load_run(path, SAME)
    for name in run.stages:
        if rank == 0:
            workflow.pack(run, name)
        import torch.distributed as dist

        dist.barrier()
        workflow.train(run, name)


def configure(folder: Path, **launch: Any) -> Path:
    """A cluster file for runs in `folder`: two nodes with a rank each."""
    python = folder / "slow-python"
    python.write_text(
        "#!/bin/sh\n"
        f'[ "$2 $3" = "alia_ctx.cli train" ] && shift 2 && '
        f'exec {sys.executable} -m tests.cluster.slow_cli "$@"\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    settings = {
        "cluster": {"nodes": 2, "ranks_per_node": 1, "peak_tflops": 0.1},
        "engine": {"device": "cpu"},
        "metrics": {"sinks": []},
        "launch": {
            "scheduler": "slurm",
            "partition": "all",
            "save_seconds": SAVE_SECONDS,
            "exclusive": False,
            "python": str(python),
            "environment": {
                GATE: str(folder / "allowed"),
                "PYTHONPATH": python_path(),
                "OMP_NUM_THREADS": "1",
            },
            **launch,
        },
    }
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def alia(slurm: Slurm, *arguments: str | Path) -> Any:
    command = [sys.executable, "-m", "alia_ctx.cli", *map(str, arguments)]
    return slurm.run(*command, cwd=ROOT, check=False, timeout=600)


def update_of(folder: Path, stage: str) -> int:
    try:
        return int(metrics(folder, stage)[-1]["update"])
    except (
        OSError,
        IndexError,
        ValueError,
    ):  # ValueError: half a line, as it is written
        return 0


def numbers(folder: Path, stage: str) -> list[tuple[Any, ...]]:
    lines = metrics(folder, stage)
    return [tuple(map(str, (line[k] for k in KEYS))) for line in lines]


def last(folder: Path, stage: str) -> Path:
    return checkpoint.list_checkpoints(folder / "out/stages" / stage / "checkpoints")[
        -1
    ]


class Disturbed:
    """A job of a stage that is training, and what befalls it."""

    def __init__(self, slurm: Slurm, folder: Path, stage: str, number: str) -> None:
        self.slurm, self.folder, self.stage, self.number = slurm, folder, stage, number
        self.restarts = 0

    def words(self) -> str:
        logs = sorted((self.folder / "out/launch/logs").rglob("*.*"))
        return self.slurm.words() + "".join(
            f"\n{f.name}:\n{f.read_text()[-3000:]}" for f in logs if f.is_file()
        )

    def allow(self, update: int) -> None:
        allow(self.folder / "allowed", self.stage, update)

    def at(self, update: int) -> None:
        """Let the job train so many updates, and wait until it runs and has."""
        self.allow(update)

        def there() -> bool:
            job = self.slurm.job(self.number)
            assert job["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), self.words()
            running = job["JobState"] == "RUNNING"
            again = int(job["Restarts"]) == self.restarts
            return running and again and update_of(self.folder, self.stage) >= update

        self.slurm.wait(there, f"update {update} of {self.stage}", 1200)

    def goes_back(self) -> None:
        """Wait until the job has been put back into the queue."""
        self.restarts += 1

        def back() -> bool:
            return int(self.slurm.job(self.number)["Restarts"]) >= self.restarts

        self.slurm.wait(back, f"start {self.restarts + 1} of {self.stage}", 600)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm")
    run_distributed(undisturbed, 2, str(write_run(folder)))
    return folder


def test_a_run_in_the_queue_disturbed_ends_as_one_undisturbed(
    slurm: Slurm, calm: Path, tmp_path: Path
) -> None:
    path, cluster = write_run(tmp_path), configure(tmp_path)
    done = alia(slurm, "launch", path, "--cluster", cluster, "--submit")
    assert done.returncode == 0, done.stderr
    jobs = dict(re.findall(r"^(\S+): .*, job (\d+)$", done.stdout, re.MULTILINE))
    assert list(jobs) == ["00-data", "01-short", "02-long", "03-evaluate"]
    again = alia(slurm, "launch", path, "--cluster", cluster, "--submit")
    assert again.returncode == 2
    # Whether it has begun yet is for the queue to say.
    queued = (
        rf"is in the queue as job {jobs['01-short']}, (PENDING|CONFIGURING|RUNNING)"
    )
    assert re.search(queued, again.stderr), again.stderr

    # A warning, as before pre-emption: saved, and back into the queue by itself.
    short = Disturbed(slurm, tmp_path, "short", jobs["01-short"])
    short.at(2)
    shown = alia(slurm, "status", tmp_path / "out", "--json")
    [status, *_] = json.loads(shown.stdout)["stages"]
    assert status["job"]["state"] == "RUNNING" and status["updates"] == 12
    slurm.run("scancel", "--batch", "--signal=USR1", short.number)
    short.allow(3)
    short.goes_back()
    # The node of the second rank dies, with everything on it.
    short.at(5)
    slurm.fail_node("two")
    short.goes_back()
    slurm.start_node("two")
    # Somebody puts the job back: killed without a chance to save.
    short.at(8)
    slurm.run("scontrol", "requeue", short.number)
    short.goes_back()
    short.allow(12)

    # The time limit draws near: the next stage is told, saves, and goes on afterwards.
    long = Disturbed(slurm, tmp_path, "long", jobs["02-long"])
    long.at(1)
    output = next((tmp_path / "out/launch/logs").glob("02-long-*.out"))
    minutes = _minutes(slurm.job(long.number)["RunTime"]) + 2
    slurm.run("scontrol", "update", f"JobId={long.number}", f"TimeLimit={minutes}")
    slurm.wait(lambda: "time is nearly up" in output.read_text(), "warning", 600)
    long.allow(2)
    long.goes_back()
    slurm.run("scontrol", "update", f"JobId={long.number}", "TimeLimit=30")
    long.allow(4)

    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    slurm.wait(lambda: slurm.state(jobs["03-evaluate"]) in ends, "end", 1500)
    for number in jobs.values():
        assert slurm.state(number) == "COMPLETED", short.words()
    for stage in ("short", "long"):
        assert numbers(tmp_path, stage) == numbers(calm, stage)
        assert state_checksums(last(tmp_path, stage)) == state_checksums(
            last(calm, stage)
        )
    assert (tmp_path / "out/report/report.md").is_file()
    said = next((tmp_path / "out/launch/logs").glob("01-short-*.out")).read_text()
    assert "back into the queue, to go on from what is saved" in said
    assert (tmp_path / "out/launch/logs/01-short/rank-1.log").is_file()

    # All is done: nothing is submitted any more, and a job of a finished stage is a no-op.
    done = alia(
        slurm, "launch", path, "--cluster", cluster, "--stage", "short", "--submit"
    )
    assert done.stdout == "note: stage short is finished: no job\n", done.stderr
    before = last(tmp_path, "short").stat().st_mtime_ns
    number = slurm.run("sbatch", "--parsable", f"{tmp_path}/out/launch/01-short.sbatch")
    slurm.wait(lambda: slurm.state(number.stdout.strip()) in ends, "end", 600)
    assert slurm.state(number.stdout.strip()) == "COMPLETED"
    assert last(tmp_path, "short").stat().st_mtime_ns == before
    # A copy without the queue tells the same, but for the jobs.
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "out", copy)
    found = workflow.run_status(copy)
    assert [stage.state for stage in found.stages] == ["finished", "finished"]
    assert found.stages[0].faults["update done again"] >= 2


def _minutes(text: str) -> int:
    days, _, clock = text.rpartition("-")
    hours, minutes, _ = map(int, clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + minutes


def queue(slurm: Slurm) -> list[str]:
    done = slurm.run("squeue", "--noheader", "--format=%i", "--states=PD,R,CG")
    return done.stdout.split()


def test_what_is_wrong_never_reaches_the_queue(slurm: Slurm, tmp_path: Path) -> None:
    path, cluster = write_run(tmp_path), configure(tmp_path)
    before = queue(slurm)
    submit = ("launch", path, "--cluster", cluster, "--submit")
    wrong = ["stages.long.layout.tp=3", "launch.partition=none such"]
    done = alia(slurm, *submit, *wrong, "launch.time_limit=soon")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for word in ("stages.long.layout.tp", "launch.partition", "launch.time_limit"):
        assert word in done.stderr
    assert not (tmp_path / "out").exists() and queue(slurm) == before
    # What only the queue knows: the jobs before the refused one are taken back.
    done = alia(slurm, *submit, "stages.long.nodes=3", "stages.long.update_tokens=1024")
    assert done.returncode == 2, done.stdout
    assert "02-long.sbatch was refused" in done.stderr
    assert "Those before it were taken back" in done.stderr
    slurm.wait(lambda: queue(slurm) == before, "empty queue")
    assert not (tmp_path / "out/launch/jobs.json").exists()


def test_nothing_is_left_of_a_cluster(tmp_path: Path) -> None:
    with Slurm(("one",)) as cluster:
        folder, inside = (
            cluster.folder,
            os.listdir(f"/proc/{cluster.machines.head}/root/proc"),
        )
        assert cluster.run("srun", "hostname").stdout == "one\n"
        assert {"1"} < set(inside)
    assert not folder.exists()
    assert not Path(f"/proc/{cluster.machines.head}").exists()
