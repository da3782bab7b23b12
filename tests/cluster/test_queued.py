"""What waits for what in a queue, by stand-ins for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.cluster import QueuedJob, QueueError, Slurm
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.workflow.queued import own_user
from alia_ctx.workflow.standing import run_status
from tests.cluster.launched import SLURM, cluster, commands, options
from tests.paths import python_path
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
    commands(tmp_path, squeue=said("7|PENDING|Priority", "small-short|"))
    assert run_status(path).stages[0].state == "job 7 pending (Priority)"
    (folder / "jobs.json").write_text("{")
    assert "is no record of submitted jobs" in run_status(path).problems[0]
    with pytest.raises(AliaError, match="is no record of submitted jobs"):
        workflow.launch(path, cluster=cluster(tmp_path, SLURM))


def said(begins: str, label: str, user: str = "") -> str:
    """A line of squeue: what it begins with, and the job's name and comment."""
    return f"echo '{begins}||N/A|0:00|1:00|{user or own_user()}|{label}'"


LABEL = "small-short|alia-ctx /a b/01-short"


@pytest.mark.parametrize(
    ("label", "user", "is_ours"),
    [
        (LABEL, "", True),
        ("small-short|a comment of the site", "", True),
        ("small-short|", "", True),
        ("other-short|", "", False),
        ("small-short|alia-ctx /elsewhere/01-short", "", False),
        ("a|b|" + LABEL, "", False),
        (LABEL, "somebody", False),
    ],
)
def test_a_job_of_the_same_number_is_ours_by_name_user_and_run(
    label: str, user: str, is_ours: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    commands(tmp_path, squeue=said("7|RUNNING|None", label, user))
    path, folder = write_run(tmp_path), tmp_path / "out/launch"
    folder.mkdir(parents=True)
    job = {"number": "7", "name": "01-short", "stage": "short", "step": "train"}
    job |= {"label": LABEL, "user": own_user() or "root"}
    (folder / "jobs.json").write_text(json.dumps({"jobs": [job]}))
    state = run_status(path).stages[0].state
    assert state == ("job 7 running" if is_ours else "not begun, job 7 is gone")
    launched = workflow.launch(path, cluster=cluster(tmp_path, SLURM))
    assert any("in the queue as job 7" in n for n in launched.notes) is is_ours


def test_jobs_are_called_by_what_they_do(tmp_path: Path) -> None:
    files = workflow.launch(write_run(tmp_path), cluster=cluster(tmp_path, SLURM)).files
    asked = [options(file.read_text()) for _, file in files]
    names = ["small-00-data", "small-short", "small-long", "small-03-evaluate"]
    assert [header["job-name"] for header in asked] == names
    folder = tmp_path / "out/launch"
    comments = [f"alia-ctx {folder / job.name}" for job, _ in files]
    assert [header["comment"] for header in asked] == comments


def test_what_a_person_has_set_for_slurm_changes_no_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    tell = f'printf "%s\n" "$*" >{tmp_path}/said; env >>{tmp_path}/said'
    commands(tmp_path, squeue=tell, sbatch=f"{tell}; echo 7", scancel=tell)
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SBATCH_EXPORT", "SBATCH_QOS"):
        monkeypatch.setenv(name, "NONE")
    for name in ("SLURM_JOB_ID", "SLURM_EXPORT_ENV", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "relative")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    script = tmp_path / "x.sbatch"
    script.write_text("#SBATCH --qos=fast\n")
    kept: list[set[str]] = []
    for ask in (
        lambda: Slurm().jobs(["7"]),
        lambda: Slurm().submit(script),
        lambda: Slurm().cancel(["7"]),
    ):
        ask()
        words, *lines = (tmp_path / "said").read_text().splitlines()
        kept.append({n.partition("=")[0] for n in lines if n.startswith("S")})
        if "squeue" not in words and "--jobs" in words:
            assert "--states=all" in words and "--noheader" in words
    ours = ("SLURM", "SBATCH", "SQUEUE")
    assert [{n for n in names if n.startswith(ours)} for names in kept] == [
        {"SLURM_CONF"},
        {"SLURM_CONF", "SBATCH_ACCOUNT"},
        {"SLURM_CONF"},
    ]


def test_jobs_that_have_ended_are_in_no_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    lines = [
        said(f"{n}|{state}|None", "a|b c|d")
        for n, state in enumerate(("FAILED", "RUNNING", "SUSPENDED", "CANCELLED"))
    ]
    commands(tmp_path, squeue="; ".join(lines))
    there = Slurm().jobs(["0", "1", "2", "3"])
    assert {n: (j.state, j.label) for n, j in there.items()} == {
        "1": ("RUNNING", "a|b c|d"),
        "2": ("SUSPENDED", "a|b c|d"),
    }


class Queue:
    """A queue that takes every job, and keeps it until a test ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after: dict[str, list[str]] = {}
        self.behind: dict[str, list[str]] = {}
        self.names: dict[str, str] = {}
        self.ended: set[str] = set()
        self.others: list[QueuedJob] = []
        monkeypatch.setattr(Slurm, "is_here", staticmethod(lambda: True))
        monkeypatch.setattr(
            Slurm, "submit", lambda slurm, *a, **o: self.submit(*a, **o)
        )
        monkeypatch.setattr(Slurm, "jobs", lambda slurm, numbers: self.jobs(numbers))
        monkeypatch.setattr(Slurm, "jobs_of", lambda slurm, user: self.others)

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


def test_a_queued_stage_of_other_settings_is_no_substitute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, path = Queue(monkeypatch), write_run(tmp_path)
    submit(path)
    for override, name, stages in [
        ("stages.long.learning_rate=0.001", "long", []),
        ("stages.long.tokens=30720", "long", ["long"]),
        ("stages.short.update_tokens=1024", "short", ["long"]),
        ("optimizer.beta2=0.9", "short", []),
        ("seed=9", "long", []),
        ("data.append_eos=false", "long", []),
        ("model.rms_norm_eps=1e-6", "short", ["short"]),
    ]:
        with pytest.raises(ConfigError) as refused:
            submit(path, override, stages=stages)
        number = {"short": "101", "long": "102"}[name]
        said = f"is in the queue as job {number}, PENDING, with other settings"
        assert f"stages.{name}" in str(refused.value) and said in str(refused.value)
        assert override.split("=")[0] in str(refused.value)
    assert len(queue.after) == 4
    # What decides nothing of the weights may differ, and what later stages have.
    assert list(submit(path, "evaluation.documents=3").numbers) == ["03-evaluate"]
    queue.ended |= {"102", "103", "104"}
    launched = submit(path, "stages.long.learning_rate=0.001")
    assert list(launched.numbers) == ["00-data", "02-long", "03-evaluate"]


def test_a_job_of_the_run_that_nobody_noted_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, path = Queue(monkeypatch), write_run(tmp_path)
    label = f"mine|alia-ctx {tmp_path}/out/launch/01-short"
    other = f"small-short|alia-ctx {tmp_path}/out2/launch/01-short"
    for number, text in (("7", other), ("8_[0-1]", label)):
        queue.others.append(QueuedJob(number, "RUNNING", "", "1", "", "", "", "", text))
    with pytest.raises(ConfigError, match=r"01-short=job 8_\[0-1\]: is in the queue"):
        submit(path)
    assert not queue.after
    del queue.others[1]
    submit(path)
    queue.others += [QueuedJob("100", "PENDING", "", "1", "", "", "", "", label)]
    assert not any("does not have it" in p for p in run_status(path).problems)
    queue.others += [QueuedJob("9", "PENDING", "", "1", "", "", "", "", label)]
    assert any("job 9 (pending) is of this run" in p for p in run_status(path).problems)


def test_status_shows_what_was_submitted_and_not_what_was_only_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Queue(monkeypatch)
    path, over = write_run(tmp_path), cluster(tmp_path, SLURM)
    submit(path, stages=["short"])
    longer = ["stages.long.tokens=30720"]
    assert workflow.launch(path, longer, cluster=over, stages=["long"]).files
    assert [stage.updates for stage in run_status(tmp_path / "out").stages] == [12, 4]


def test_answers_of_the_queue_are_read_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    label = "a\u00f1o|alia-ctx /\u00e9"
    commands(tmp_path, squeue=f"cat {tmp_path}/said")
    line = f"7|RUNNING|None||N/A|0:00|1:00|me|{label}\n"
    (tmp_path / "said").write_text(line, encoding="utf-8")
    program = "import sys; from alia_ctx.cluster import Slurm; "
    program += "print(ascii(Slurm().jobs(['7'])['7'].label))"
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": python_path(), **plain},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == ascii(label), done.stderr


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
    script = tmp_path / "x.sbatch"
    script.touch()
    assert Slurm().submit(script, after, behind=behind) == "7"
    words = (tmp_path / "said").read_text().split()
    assert words == ["--parsable", *said, str(script)]
