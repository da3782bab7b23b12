"""What waits for what in a queue, by stand-ins for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.cluster import QueuedJob, QueueError, Slurm
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.workflow.standing import run_status
from tests.cluster.launched import SLURM, cluster, commands
from tests.small_run import write_run


def test_a_queue_that_does_not_answer_is_no_empty_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    gone = "slurm_load_jobs error: Invalid job id specified"
    commands(tmp_path, squeue=f"echo {gone} >&2; exit 1")
    assert Slurm().jobs(["7"]) == {}
    commands(tmp_path, squeue="echo Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(QueueError, match="Unable to contact"):
        Slurm().jobs(["7"])
    path = write_run(tmp_path)
    folder = tmp_path / "out/launch"
    folder.mkdir(parents=True)
    job = {"number": "7", "name": "01-short", "stage": "short", "step": "train"}
    (folder / "jobs.json").write_text(json.dumps({"jobs": [job]}))
    with pytest.raises(QueueError, match="Unable to contact"):
        workflow.launch(path, cluster=cluster(tmp_path, SLURM))
    assert "Unable to contact" in run_status(path).problems[0]
    commands(tmp_path, squeue="echo '7|PENDING|Priority||N/A|0:00|1:00'")
    assert run_status(path).stages[0].state == "job 7 pending (Priority)"
    (folder / "jobs.json").write_text("{")
    assert "is no record of submitted jobs" in run_status(path).problems[0]
    with pytest.raises(AliaError, match="is no record of submitted jobs"):
        workflow.launch(path, cluster=cluster(tmp_path, SLURM))


class Queue:
    """A queue that takes every job, and keeps it until a test ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after: dict[str, list[str]] = {}
        self.behind: dict[str, list[str]] = {}
        self.names: dict[str, str] = {}
        self.ended: set[str] = set()
        monkeypatch.setattr(Slurm, "is_here", staticmethod(lambda: True))
        monkeypatch.setattr(
            Slurm, "submit", lambda slurm, *a, **o: self.submit(*a, **o)
        )
        monkeypatch.setattr(Slurm, "jobs", lambda slurm, numbers: self.jobs(numbers))

    def submit(self, path: Path, after: Any = (), behind: Any = ()) -> str:
        number = str(100 + len(self.after))
        self.after[number], self.behind[number] = [*after], [*behind]
        self.names[number] = path.stem
        return number

    def jobs(self, numbers: Any) -> dict[str, QueuedJob]:
        there = [n for n in numbers if n in self.after and n not in self.ended]
        return {n: QueuedJob(n, "PENDING", "", "1", "", "", "") for n in there}


def submit(path: Path, *overrides: str, stages: Any = ()) -> Any:
    over = cluster(path.parent, SLURM)
    return workflow.launch(path, overrides, stages=stages, cluster=over, submit=True)


def test_a_stage_waits_for_the_one_before_that_is_queued_and_shares_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, path = Queue(monkeypatch), write_run(tmp_path)
    assert list(submit(path).numbers) == [
        "00-data",
        "01-short",
        "02-long",
        "03-evaluate",
    ]
    queue.ended |= {"102", "103"}  # the second stage failed, and what was after it went
    launched = submit(path, "launch.time_limit=10:00:00", stages=["long"])
    assert list(launched.numbers) == ["02-long"]
    assert queue.after["104"] == ["100", "101"]
    assert launched.notes == ["the data is in the queue as job 100: no further job"]
    # All that is missing is the evaluation, after both.
    launched = submit(path)
    assert list(launched.numbers) == ["03-evaluate"]
    assert queue.after["105"] == ["101", "104"]
    for stages in ([], ["short"], ["long"]):
        with pytest.raises(ConfigError, match="is in the queue as job 10"):
            submit(path, stages=stages)
    assert len(queue.after) == 6


def test_data_that_is_made_otherwise_or_for_less_is_no_substitute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, path = Queue(monkeypatch), write_run(tmp_path)
    submit(path, stages=["short"])
    assert list(queue.names.values()) == ["00-data", "01-short"]
    # The plan of the second stage is in no job yet: another one, behind the first.
    assert list(submit(path, stages=["long"]).numbers) == ["00-data", "02-long"]
    assert (queue.after["102"], queue.behind["102"]) == ([], ["100"])
    assert queue.after["103"] == ["102", "101"]
    queue.ended |= {"101", "103"}
    with pytest.raises(
        ConfigError, match="starts from short, which is neither finished"
    ):
        submit(path, "seed=7", stages=["long"])
    launched = submit(path, "seed=7", stages=["short", "long"])
    assert list(launched.numbers) == ["00-data", "01-short", "02-long"]
    assert queue.behind["104"] == ["100", "102"]


def test_an_old_evaluation_is_no_substitute_for_one_of_what_is_trained_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, path = Queue(monkeypatch), write_run(tmp_path)
    submit(path)
    queue.ended |= {"100", "101", "102"}  # held in the queue, the evaluation is there
    launched = submit(path)
    assert list(launched.numbers)[-1] == "03-evaluate"
    assert queue.behind["107"] == ["103"]


@pytest.mark.parametrize(
    ("after", "behind", "said"),
    [
        ([], [], []),
        (["1", "2"], [], ["--dependency=afterok:1:2"]),
        (["1"], ["2", "3"], ["--dependency=afterok:1,afterany:2:3"]),
        ([], ["2"], ["--dependency=afterany:2"]),
    ],
)
def test_dependencies_are_said_as_sbatch_reads_them(
    after: list[str],
    behind: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    commands(tmp_path, sbatch=f'printf "%s\\n" "$@" >{tmp_path}/said; echo 7')
    assert Slurm().submit(Path("x.sbatch"), after, behind=behind) == "7"
    words = (tmp_path / "said").read_text().split()
    assert words == ["--parsable", *said, "x.sbatch"]
