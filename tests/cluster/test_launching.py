"""What `alia-ctx launch` writes, without a queue; `status` of what is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.cluster import QueuedJob, QueueError, Slurm
from alia_ctx.config.load import load_run
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.spec.launch import LaunchSpec, slurm_seconds, slurm_time
from alia_ctx.train.faults import RankName, fault, read_faults, record_fault
from alia_ctx.workflow.launching import submitted_jobs
from alia_ctx.workflow.standing import run_status
from tests.paths import ROOT
from tests.small_run import write_run
from tests.train.runs import start

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
        ({"environment": {"RANK": "1"}}, "launch.environment"),
        ({"container_command": "apptainer 'exec"}, "launch.container_command"),
        ({"container_command": " "}, "launch.container_command"),
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


def test_batch_files_carry_what_the_configuration_says(tmp_path: Path) -> None:
    """Exported as a shell reads it back."""
    home = os.path.expanduser("~")
    launch = {**SLURM, "python": "~/venv/bin/python", "container": "~/a b.sif"}
    launch |= {"container_command": 'run --env "A=it\'s" ~/wrapper'}
    launch |= {"environment": {"OMP_NUM_THREADS": "3", "HF_HOME": "~/hf"}}
    overrides = ["engine.timeout_minutes=50", "engine.hang_minutes=40"]
    files = workflow.launch(
        write_run(tmp_path), overrides, cluster=cluster(tmp_path, launch)
    ).files
    for job, file in files:
        text = file.read_text()
        header = text[: text.index("set -uo pipefail")]
        done = subprocess.run(
            ["bash", "-c", f"{header}\nenv -0"], capture_output=True, text=True
        )
        shown = dict(n.split("=", 1) for n in done.stdout.split("\0") if "=" in n)
        assert shown["ALIA_PYTHON"] == f"{home}/venv/bin/python"
        assert shown["ALIA_CONTAINER"] == f"{home}/a b.sif"
        words = ["run", "--env", "A=it's", f"{home}/wrapper"]
        assert shlex.split(shown["ALIA_CONTAINER_COMMAND"]) == words
        assert shown["OMP_NUM_THREADS"] == "3" and shown["HF_HOME"] == f"{home}/hf"
        assert options(text)["signal"] == "B:USR1@600"
        if job.step == "data":
            assert shown["ALIA_COMMANDS"].splitlines()[0] == f"tokenize {job.config}"
        else:
            assert int(shown["ALIA_WAIT_SECONDS"]) > 50 * 60


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


def test_on_one_machine_too_all_runs_in_the_container(tmp_path: Path) -> None:
    log, command = tmp_path / "log", tmp_path / "my container"
    command.write_text(f'#!/bin/bash\nprintf "<%s>" "$@" >>{log}; echo >>{log}\n')
    command.chmod(0o755)
    image = [f"launch.container_command=\"'{command}' exec --nv\""]
    image += ["launch.container=x y.sif"]
    launched = workflow.launch(write_run(tmp_path), image)
    [script] = {file for _, file in launched.files}
    done = subprocess.run([str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    assert len(lines) == 7
    assert all(n.startswith("<exec><--nv><x y.sif><python><-m>") for n in lines)


def test_on_one_machine_what_only_a_cluster_can_do_is_refused_or_said(
    tmp_path: Path,
) -> None:
    path = write_run(tmp_path)
    with pytest.raises(
        ConfigError, match=r"stages\.long\.nodes.*more than the one machine"
    ):
        workflow.launch(path, ["stages.long.nodes=2"])
    with pytest.raises(ConfigError, match="the run has 2 nodes"):
        workflow.launch(path, ["cluster.nodes=2", "stages.long.nodes=1"])
    with pytest.raises(AliaError, match=r"stages\.long\.nodes=2"):
        workflow.run_all(path, [], load_run(path, ["stages.long.nodes=2"]))
    assert not (tmp_path / "out").exists()
    launched = workflow.launch(path, ["launch.account=abc", "launch.gres=gpu:2"])
    assert launched.notes == [
        "launch.account, launch.gres: only a queue has a use for it, and there is none"
    ]


@pytest.mark.parametrize("home", ["~/python", "~root/python"])
def test_an_interpreter_below_home_is_found(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written = LaunchSpec(python=home).program("python")
    assert written == [os.path.expanduser(home)] and "~" not in written[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_who_stops_the_script_stops_what_it_started(
    number: signal.Signals, tmp_path: Path
) -> None:
    python, ready = tmp_path / "python", tmp_path / "ready"
    body = f"trap 'exit 75' TERM USR1; touch {ready}; while true; do sleep 0.1; done"
    python.write_text(f"#!/bin/bash\n{body}\n")
    python.chmod(0o755)
    launched = workflow.launch(write_run(tmp_path), [f"launch.python={python}"])
    with subprocess.Popen([str(launched.files[0][1])], start_new_session=True) as run:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        children = psutil.Process(run.pid).children()
        run.send_signal(number)
        assert run.wait(30) == 75
        assert not psutil.wait_procs(children, timeout=10)[1]


def test_a_rank_that_is_killed_is_started_again(tmp_path: Path) -> None:
    log, python = tmp_path / "log", tmp_path / "python"
    killed = f'[[ "$*" == *train*short && $(grep -c train.*short$ {log}) -lt 3 ]]'
    python.write_text(
        f'#!/bin/bash\necho "$*" >> {log}\n{killed} && kill -KILL $$\nexit 0\n'
    )
    python.chmod(0o755)
    launched = workflow.launch(write_run(tmp_path), [f"launch.python={python}"])
    [script] = {file for _, file in launched.files}
    done = subprocess.run([str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    trained = [n for n in log.read_text().splitlines() if "train" in n]
    assert [n.split()[-1] for n in trained] == ["short", "short", "short", "long"]


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


def test_stages_that_are_newer_than_the_last_checkpoint_are_shown(
    tmp_path: Path,
) -> None:
    """Launched since, or begun without a configuration that is known."""
    path, out = write_run(tmp_path), tmp_path / "out"
    assert start(path) == ""  # `short` is done, of a run of two
    document = yaml.safe_load(path.read_text())
    document["stages"]["longer"] = {
        **document["stages"]["long"],
        "init_from": "long",
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    workflow.launch(path, cluster=cluster(tmp_path, SLURM))
    begun = out / "stages/by hand"
    begun.mkdir()
    line = {"update": 3, "tokens": 30, "loss": 2.5, "seconds": 1.0}
    (begun / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for copied in (out, tmp_path / "copy"):
        if copied != out:  # as a transfer that does not keep times
            shutil.copytree(out, copied, copy_function=shutil.copyfile)
            os.utime(copied / "launch" / next(out.glob("launch/run-*")).name, (0, 0))
        status = run_status(copied)
        shown = {stage.stage: stage.state for stage in status.stages}
        assert list(shown) == ["short", "long", "longer", "by hand"]
        assert shown["short"] == "finished" and shown["longer"] == "not begun"
        assert shown["by hand"] == "begun"
        [by_hand] = [s for s in status.stages if s.stage == "by hand"]
        assert (by_hand.update, by_hand.updates, by_hand.loss) == (3, None, 2.5)
