"""What `alia-ctx launch` writes, without a queue; `status` of what is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.cluster import QueueError, Slurm
from alia_ctx.config.load import load_run
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.spec.launch import LaunchSpec, slurm_seconds, slurm_time
from alia_ctx.train.faults import RankName, fault, read_faults, record_fault
from alia_ctx.workflow.launching import submitted_jobs
from alia_ctx.workflow.standing import run_status
from tests.paths import ROOT
from tests.small_run import write_run

SLURM = {"scheduler": "slurm", "account": "abc", "qos": "fast", "gres": "gpu:2"}


def cluster(folder: Path, launch: dict[str, Any], **sizes: int) -> Path:
    path = folder / "cluster.yaml"
    document = {"cluster": {"nodes": 2, "ranks_per_node": 2, **sizes}, "launch": launch}
    path.write_text(yaml.safe_dump(document))
    return path


def options(text: str) -> dict[str, str]:
    """The options of a batch file's header, as sbatch reads them."""
    words = re.findall(r"^#SBATCH --(\S+?)(?:=(.*))?$", text, re.MULTILINE)
    return {name: value.strip('"') for name, value in words}


def test_batch_files_ask_for_what_the_stages_need(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    launch = {**SLURM, "mail": "a@b.org", "options": ["--reservation=r"]}
    launch |= {"setup": ["module load x"], "environment": {"A": "it's"}}
    launched = workflow.launch(
        path, ["stages.long.nodes=1"], cluster=cluster(tmp_path, launch)
    )
    names = [job.name for job, _ in launched.files]
    assert names == ["00-data", "01-short", "02-long", "03-evaluate"]
    short, long = (launched.files[i][1].read_text() for i in (1, 2))
    asked = options(short)
    expected = {"account": "abc", "qos": "fast", "gres": "gpu:2", "nodes": "2"}
    expected |= {"ntasks-per-node": "2", "mail-user": "a@b.org", "reservation": "r"}
    expected |= {"signal": "B:USR1@600", "chdir": str(Path.cwd()), "exclusive": ""}
    assert expected.items() <= asked.items()
    assert options(long)["nodes"] == "1"
    assert "partition" not in asked
    assert "\nmodule load x\n" in short and "\nexport A='it'\"'\"'s'\n" in short
    body = (ROOT / "launch/slurm_stage.sbatch").read_text()
    assert short.endswith(body[body.index("set -uo pipefail") :])
    for _, file in launched.files:
        assert file.stat().st_mode & stat.S_IXUSR
        done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    # The copy that the jobs read is the configuration, cluster file and overrides in it.
    copy = next((tmp_path / "out/launch").glob("run-*.yaml"))
    assert load_run(copy).stage("long").nodes == 1
    assert load_run(copy).launch.account == "abc"
    assert not launched.numbers


def test_what_looks_like_an_interpolation_is_text_in_the_jobs_copy(
    tmp_path: Path,
) -> None:
    setup = "export X=${HOME}/lib:${root}"
    written = {**SLURM, "setup": [setup.replace("${", r"\${")]}
    workflow.launch(write_run(tmp_path), [], cluster=cluster(tmp_path, written))
    copy = next((tmp_path / "out/launch").glob("run-*.yaml"))
    assert load_run(copy).launch.setup == [setup]


def test_a_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name"):
        load_run(write_run(tmp_path), ['name="a\\n#SBATCH --nodes=9"'])


def test_jobs_that_could_not_be_taken_back_are_recorded_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(["100", "101"])

    def submit(self: Slurm, path: Path, after: Any) -> str:
        number = next(given, None)
        if number is None:
            raise QueueError("Unable to contact slurm controller")
        return number

    def cancel(self: Slurm, numbers: Any) -> None:
        if list(numbers) == ["101"]:
            raise QueueError("Unable to contact slurm controller")

    monkeypatch.setattr(Slurm, "is_here", staticmethod(lambda: True))
    monkeypatch.setattr(Slurm, "jobs", lambda self, numbers: {})
    monkeypatch.setattr(Slurm, "submit", submit)
    monkeypatch.setattr(Slurm, "cancel", cancel)
    path = write_run(tmp_path)
    with pytest.raises(QueueError, match=r"taken back: 100\. Still in the queue: 101"):
        workflow.launch(path, [], cluster=cluster(tmp_path, SLURM), submit=True)
    jobs = submitted_jobs(tmp_path / "out/launch")
    assert [job["number"] for job in jobs] == ["100", "101"]


def test_a_begun_stage_asks_for_what_is_left_and_never_for_more_than_the_queue_gives(
    tmp_path: Path,
) -> None:
    path = write_run(tmp_path)
    slow = ["cluster.peak_tflops=1e-9"]
    files = workflow.launch(path, slow, cluster=cluster(tmp_path, SLURM)).files
    assert options(files[1][1].read_text())["time"] == "1-00:00:00"
    limit = ["launch.time_limit=00:45:00", "cluster.peak_tflops=1e-9"]
    files = workflow.launch(path, limit, cluster=cluster(tmp_path, SLURM)).files
    assert {options(f.read_text())["time"] for _, f in files} == {"00:45:00"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "00:01:00"), (3600, "01:00:00"), (3601, "01:01:00"), (90_000, "1-01:00:00")],
)
def test_times_are_slurms_and_whole_minutes(seconds: float, text: str) -> None:
    assert slurm_time(seconds) == text
    assert slurm_seconds(text) >= seconds


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"time_limit": "1h"}, "launch.time_limit"),
        ({"time_limit": "00:05:00"}, "launch.save_seconds"),
        ({"save_seconds": -1}, "launch.save_seconds"),
        ({"cpus_per_rank": 0}, "launch.cpus_per_rank"),
        ({"account": "a b"}, "launch.account"),
        ({"qos": "x\n#SBATCH --nodes=9"}, "launch.qos"),
        ({"options": ["rm"]}, "launch.options"),
        ({"options": ["--x\nrm"]}, "launch.options"),
        ({"environment": {"A B": "1"}}, "launch.environment"),
    ],
)
def test_what_no_batch_file_can_be_made_of_is_a_problem(
    values: dict[str, Any], key: str
) -> None:
    assert [p.key for p in LaunchSpec(**values).problems()] == [key]


def test_nothing_is_written_where_check_refuses(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    with pytest.raises(ConfigError, match="layout"):
        workflow.launch(
            path, ["stages.long.layout.tp=3"], cluster=cluster(tmp_path, SLURM)
        )
    with pytest.raises(ConfigError, match="has no queue"):
        workflow.launch(path, submit=True)
    with pytest.raises(ConfigError, match="the run has 2 nodes"):
        workflow.launch(path, cluster=cluster(tmp_path, {}))
    assert not (tmp_path / "out").exists()


def test_without_the_queues_commands_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write_run(tmp_path)
    with pytest.raises(QueueError, match="there is no `sbatch` on this machine"):
        workflow.launch(path, cluster=cluster(tmp_path, SLURM), submit=True)


# -- the queue, by stand-ins for its commands ----------------------------------------------


def commands(folder: Path, **scripts: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    for name, script in scripts.items():
        file = folder / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)


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


# -- one machine -----------------------------------------------------------------------


def test_on_one_machine_a_script_does_the_steps_again_where_ranks_ask_for_it(
    tmp_path: Path,
) -> None:
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        f'echo "$*" >> {log}\n'
        f'[[ "$*" == *train*short && $(grep -c "train.*short$" {log}) -lt 3 ]] && exit 75\n'
        '[[ "$*" == *train*long ]] && exit 3\n'
        "exit 0\n"
    )
    python.chmod(0o755)
    path = write_run(tmp_path)
    launched = workflow.launch(
        path, [f"launch.python={python}", "cluster.ranks_per_node=2"]
    )
    [script] = {file for _, file in launched.files}
    done = subprocess.run([str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    said = [
        line.split("alia_ctx.cli ")[-1].split(" /")[0]
        for line in log.read_text().splitlines()
    ]
    assert said == ["tokenize", "pack", "pack", "train", "train", "train", "train"]
    assert log.read_text().count("--nproc-per-node=2") == 4


# -- where it stands -------------------------------------------------------------------


def test_faults_are_counted_and_what_is_no_line_is_passed_over(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    folder = tmp_path / "out/stages/short"
    who = RankName(3, "node7", "GPU 1, H100")
    record_fault(folder, 0, fault("slow", who, 5, f"{who} takes 3.0 times"))
    record_fault(folder, 3, fault("hung", who, 9, f"{who}: no progress"))
    with open(folder / "faults/rank-3.jsonl", "a") as stream:
        stream.write('{"half": \n[1]\n')
    assert [line["kind"] for line in read_faults(folder)] == ["slow", "hung"]
    [short, _] = run_status(path).stages
    assert short.faults == {"slow rank": 1, "hung rank": 1}
    assert "rank 3 on node7 (GPU 1, H100) takes 3.0 times" in short.words[0]


def test_a_directory_that_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was launched from it"):
        run_status(tmp_path)
    path = write_run(tmp_path)
    workflow.launch(path, cluster=cluster(tmp_path, SLURM))
    shutil.copytree(tmp_path / "out", tmp_path / "elsewhere")
    status = run_status(tmp_path / "elsewhere")
    assert [stage.state for stage in status.stages] == ["not begun", "not begun"]
    assert status.output == str(tmp_path / "elsewhere")
