"""What `alia-ctx launch` writes, without a queue."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.cluster import QueueError, Slurm
from alia_ctx.config.load import load_run
from alia_ctx.errors import ConfigError
from alia_ctx.spec.launch import LaunchSpec, slurm_seconds, slurm_time
from alia_ctx.workflow.launching import submitted_jobs
from tests.cluster.launched import SLURM, cluster, options
from tests.paths import ROOT
from tests.small_run import write_run


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
    monkeypatch.setattr(Slurm, "jobs_of", lambda self, user: [])
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
        *(
            ({"options": [option]}, "launch.options")
            for option in (
                "--job-name=x",
                "--job x",
                "--array=0-1",
                "--arr 1",
                "--wait",
            )
        ),
        *(
            ({"options": [option]}, "launch.options")
            for option in ("--test-only", "--wrap=x", "--clusters=x", "--help")
        ),
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


def test_other_options_of_sbatch_are_taken() -> None:
    taken = ["--wait-all-nodes=1", "--hold", "--verbose", "--comment=x", "--mem=0"]
    taken += ["--cluster-constraint=x", "--reservation=NAME", "--no-requeue"]
    assert not LaunchSpec(options=taken).problems()


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


def test_a_base_that_nobody_imports_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole chain would wait in the queue, start, and end for want of it."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    path, base = write_run(tmp_path), tmp_path / "base"
    text = path.read_text().replace("init_from: random", f"init_from: {base}")
    path.write_text(f"{text}\nhf_base: {tmp_path / 'hf'}\n")
    asked: list[Path] = []
    monkeypatch.setattr(Slurm, "is_here", lambda: False)
    monkeypatch.setattr(
        Slurm, "submit", lambda _, file, *rest, **more: asked.append(file)
    )
    with pytest.raises(
        ConfigError, match=r"hf_base=.*no job imports it; run `alia-ctx imp"
    ):
        workflow.launch(path, [], cluster=cluster(tmp_path, SLURM), submit=True)
    assert not asked and not [*(tmp_path / "out").rglob("*.sbatch")]
    launched = workflow.launch(path, [], cluster=cluster(tmp_path, SLURM))
    assert [note for note in launched.notes if "the base is not at" in note]


def test_account_and_qos_that_nothing_names_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path)

    def notes(**launch: Any) -> list[str]:
        made = workflow.launch(path, cluster=cluster(tmp_path, {**SLURM, **launch}))
        return [note for note in made.notes if "not set" in note]

    assert not notes()
    (note,) = notes(account=None, qos=None)
    assert note.startswith("launch.account and launch.qos: not set")
    (note,) = notes(account=None)
    assert note.startswith("launch.account: not set")
    assert not notes(account=None, options=["--account=abc"])
    monkeypatch.setenv("SBATCH_QOS", "fast")
    assert not notes(qos=None)


def test_a_root_that_is_not_there_is_told(tmp_path: Path) -> None:
    path, root = write_run(tmp_path), tmp_path / "elsewhere"
    launched = workflow.launch(path, [f"root={root}"], cluster=cluster(tmp_path, SLURM))
    assert [n for n in launched.notes if f"root {root} is not on this machine" in n]


@pytest.mark.parametrize("gres", ["gpu:4", "gpu:h100:4", "shard:1,gpu:4"])
def test_gpus_that_are_asked_for_are_those_of_the_ranks(
    gres: str, tmp_path: Path
) -> None:
    path = write_run(tmp_path)
    asked = {**SLURM, "gres": gres}
    launched = workflow.launch(path, cluster=cluster(tmp_path, asked))
    [note] = [note for note in launched.notes if "launch.gres" in note]
    assert "is 4 GPUs of a node, and cluster.ranks_per_node=2: the others wait" in note
    over = cluster(tmp_path, asked)
    assert [note] == [
        n for n in workflow.gpu_notes(load_run(path, over=[over])) if "gres" in n
    ]
    few = {**SLURM, "gres": gres.replace("4", "1")}
    with pytest.raises(
        ConfigError, match=r"is 1 GPUs of a node.*set launch.gres=gpu:2"
    ):
        workflow.launch(path, cluster=cluster(tmp_path, few))
    with pytest.raises(ConfigError, match="is 1 GPUs of a node"):  # by `check` as well
        load_run(path, over=[cluster(tmp_path, few)])
    for same in (gres.replace("4", "2"), "gpu", None):
        none = workflow.launch(path, cluster=cluster(tmp_path, {**SLURM, "gres": same}))
        assert not [note for note in none.notes if "launch.gres" in note]


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
        probe = tmp_path / "probe"
        probe.write_text(text[: text.index("set -uo pipefail")] + "env -0")
        done = subprocess.run(["bash", str(probe)], capture_output=True, text=True)
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
