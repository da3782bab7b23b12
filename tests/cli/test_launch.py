"""The launch scripts' own logic, with stand-ins for SLURM's commands and for Python on PATH."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.slurm_commands import LAUNCH, log, start


def test_ranks_get_torch_variables_and_the_command(cluster: dict[str, str]) -> None:
    job = start(cluster, "exit 0", "run.yaml", "32k", "seed=2")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 0, errors
    assert "python -m alia_ctx.cli check run.yaml --stage 32k seed=2" in log(cluster)
    assert "python -m alia_ctx.cli train run.yaml --stage 32k seed=2" in log(cluster)
    assert "env 3 1 8 node7" in log(cluster)
    assert "requeue" not in log(cluster)


def test_the_warning_reaches_the_rank_which_saves_and_is_requeued(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    rank = (
        f"trap 'sleep 0.5; touch {saved}; exit 75' USR1; touch {ready}; while "
        "true; do sleep 0.1; done"
    )
    job = start(cluster, rank, "run.yaml", "32k")
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ready.exists()
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 75, errors
    assert saved.exists(), "the job must wait until the rank has saved"
    assert "scontrol requeue 77" in log(cluster)


# As srun with --wait: when a rank has ended, those that go on are killed; the highest
# status is told. Two ranks; LATE_SCRIPT stands for what the second does.
SRUN_OF_TWO = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2
SLURM_PROCID=1 SLURM_LOCALID=1 RANK_SCRIPT=$LATE_SCRIPT "$@" & late=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; first=$?
sleep 0.3
kill -KILL $late 2>/dev/null
wait $late; late=$?
exit $((first > late ? first : late))
"""
SAYS = 'echo {0} > "$ALIA_STATUS_DIR/$RANK"; exit {0}'
WAITS = "exec sleep 60"


@pytest.mark.parametrize(
    ("first", "late", "status"),
    [
        (SAYS.format(75), WAITS, 75),  # a port that was taken in the last moment
        (SAYS.format(2), WAITS, 2),
        (SAYS.format(2), SAYS.format(75), 2),
        (SAYS.format(75), SAYS.format(3), 3),
        (SAYS.format(75), SAYS.format(75), 75),
        ("exit 1", WAITS, 75),  # a crash that says nothing, and a killed one
        ("exit 0", "exit 0", 0),
    ],
)
def test_the_status_of_a_rank_survives_the_killing_of_the_others(
    cluster: dict[str, str], tmp_path: Path, first: str, late: str, status: int
) -> None:
    (tmp_path / "srun").write_text(SRUN_OF_TWO)
    job = start({**cluster, "LATE_SCRIPT": late}, first, "run.yaml", "32k")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == status, errors
    assert ("scontrol requeue 77" in log(cluster)) is (status == 75)
    assert not list(tmp_path.glob(".alia-ctx-*")), "left behind"


def test_without_a_place_for_statuses_that_of_srun_counts(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    nowhere = {**cluster, "ALIA_STATUS_PARENT": "/nowhere"}
    job = start(nowhere, 'test -z "$ALIA_STATUS_DIR" && exit 75', "run.yaml", "32k")
    job.communicate(timeout=30)
    assert job.returncode == 75 and "scontrol requeue 77" in log(cluster)


def port_of(cluster: dict[str, str], job: int, port_range: str | None = None) -> int:
    """The port that a job's ranks are told, where the kernel hands out `port_range`."""
    environment = {**cluster, "SLURM_JOB_ID": str(job)}
    if port_range is not None:
        file = Path(cluster["LOG"]).with_name("port_range")
        file.write_text(port_range)
        environment["ALIA_PORT_RANGE_FILE"] = str(file)
    Path(cluster["LOG"]).unlink(missing_ok=True)
    _, errors = start(environment, "exit 0", "run.yaml", "32k").communicate(timeout=30)
    ports = [line for line in log(cluster).splitlines() if line.startswith("port ")]
    assert len(ports) == 1, errors
    return int(ports[0].removeprefix("port "))


@pytest.mark.parametrize(
    ("port_range", "low", "high"),
    [
        ("32768\t60999\n", 20000, 32767),
        ("10240\t65000\n", 65001, 65535),
        ("15000\t40000\n", 40001, 65535),
        ("49152\t65535\n", 20000, 49151),
    ],
)
def test_the_port_is_none_that_the_kernel_hands_out(
    cluster: dict[str, str], port_range: str, low: int, high: int
) -> None:
    for job in (1, 12_767, 12_768, 77_777, 35_912_345):
        assert low <= port_of(cluster, job, port_range) <= high


def test_where_every_port_may_be_taken_there_is_one_still(
    cluster: dict[str, str],
) -> None:
    assert 1024 <= port_of(cluster, 5, "1024\t65535\n") <= 65535


def test_another_port_where_somebody_listens(cluster: dict[str, str]) -> None:
    taken = port_of(cluster, 123)
    with socket.create_server(("127.0.0.1", taken)):
        other = port_of(cluster, 123)
    assert other != taken
    assert port_of(cluster, 123) == taken


def test_a_port_of_ones_own(cluster: dict[str, str]) -> None:
    assert port_of({**cluster, "MASTER_PORT": "12345"}, 123) == 12345


def test_requeues_end(cluster: dict[str, str]) -> None:
    job = start(
        {**cluster, "SLURM_RESTART_COUNT": "3", "ALIA_MOST_REQUEUES": "3"},
        "exit 75",
        "run.yaml",
        "32k",
    )
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 75
    assert "submit again" in errors
    assert "requeue 77" not in log(cluster)


def test_a_broken_configuration_starts_no_rank(cluster: dict[str, str]) -> None:
    job = start({**cluster, "CHECK_STATUS": "2"}, "exit 0", "run.yaml", "32k")
    job.communicate(timeout=30)
    assert job.returncode == 2
    assert "train" not in log(cluster)


@pytest.mark.parametrize("script", ["slurm_stage.sbatch", "torchrun_local.sh"])
def test_missing_arguments_show_the_usage(cluster: dict[str, str], script: str) -> None:
    done = subprocess.run(
        ["bash", str(LAUNCH / script), "x"],
        env=cluster,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_a_missing_interpreter_is_named(cluster: dict[str, str]) -> None:
    job = start(
        {**cluster, "ALIA_PYTHON": "/nowhere/python"}, "exit 0", "run.yaml", "32k"
    )
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 2
    assert "/nowhere/python" in errors


def test_local_launch_passes_everything_to_torchrun(cluster: dict[str, str]) -> None:
    command = [str(LAUNCH / "torchrun_local.sh"), "2", "run.yaml", "base", "seed=2"]
    environment = {**cluster, "PYTHON": cluster["ALIA_PYTHON"], "RANK_SCRIPT": "exit 0"}
    done = subprocess.run(
        ["bash", *command], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    expected = (
        "torch.distributed.run --standalone --nproc-per-node=2 -m alia_ctx.cli "
        "train run.yaml --stage base seed=2"
    )
    assert expected in log(cluster)


def test_local_launch_has_torchrun_pass_warnings_on_and_wait(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.run import config_from_args, parse_args

    names = ("PET_SIGNALS_TO_HANDLE", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    shown = "; ".join(f'echo "{name}=${name}" >>"$LOG"' for name in names)
    command = [str(LAUNCH / "torchrun_local.sh"), "2", "run.yaml", "base"]
    environment = {**cluster, "PYTHON": cluster["ALIA_PYTHON"], "RANK_SCRIPT": shown}
    subprocess.run(["bash", *command], env=environment, check=True, timeout=30)
    for line in log(cluster).splitlines():
        name, _, value = line.partition("=")
        if name in names:
            monkeypatch.setenv(name, value)
    config = config_from_args(parse_args(["-m", "alia_ctx.cli"]))[0]
    assert {"SIGTERM", "SIGUSR1", "SIGUSR2"} <= {*config.signals_to_handle.split(",")}
    assert config.shutdown_timeout >= 3600


def test_starts_that_save_nothing_come_to_an_end(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    folders = {"ALIA_LOGS": str(tmp_path / "logs"), "ALIA_PROGRESS": str(checkpoints)}

    def status() -> int:
        job = start({**cluster, **folders}, "exit 75", "run.yaml", "32k")
        _, errors = job.communicate(timeout=30)
        assert (job.returncode == 1) is ("have saved nothing" in errors)
        return job.returncode

    assert [status() for _ in range(4)] == [75] * 4
    (checkpoints / "update-00000003").mkdir()
    (checkpoints / "update-00000006.incomplete").mkdir()
    assert [status() for _ in range(5)] == [75] * 4 + [1]
    assert log(cluster).count("scontrol requeue 77") == 8


def test_each_rank_but_the_first_has_a_log_of_its_own(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    said = "echo the reason >&2; exit 2"
    job = start({**cluster, "ALIA_LOGS": str(logs)}, said, "run.yaml", "32k")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 2
    assert (logs / "rank-3.log").read_text() == "the reason\n"
    assert errors.splitlines()[-1] == "the reason", "a failed job tells the last words"


def test_ranks_and_check_run_in_the_container(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    command = 'contain exec "--bind=/a b:/c $HOME *"'
    image = {"ALIA_CONTAINER": "x y.sif", "ALIA_CONTAINER_COMMAND": command}
    (tmp_path / "contain").write_text(
        '#!/bin/bash\necho "contain <$1> <$2> <$3>" >> "$LOG"\nexec "${@:4}"\n'
    )
    (tmp_path / "contain").chmod(0o755)
    job = start({**cluster, **image}, "exit 0", "run.yaml", "32k")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 0, errors
    contained = "contain <exec> <--bind=/a b:/c $HOME *> <x y.sif>"
    assert log(cluster).count(contained) == 2


@pytest.mark.parametrize(("step", "status"), [("evaluate", 0), ("export", 2)])
def test_a_job_may_evaluate(cluster: dict[str, str], step: str, status: int) -> None:
    job = start({**cluster, "ALIA_STEP": step}, "exit 0", "run.yaml", "32k", "seed=2")
    job.communicate(timeout=30)
    assert job.returncode == status
    evaluated = "python -m alia_ctx.cli evaluate run.yaml seed=2" in log(cluster)
    assert evaluated is (step == "evaluate")


def test_a_queue_that_takes_no_job_back_is_said_to(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "scontrol").write_text(
        "#!/bin/bash\n[[ $1 == show ]] && echo node7 || exit 1\n"
    )
    job = start(cluster, "exit 75", "run.yaml", "32k")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 75 and "submit again to go on" in errors


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed"
)
def test_shellcheck() -> None:
    scripts = [
        str(p) for p in sorted(LAUNCH.iterdir()) if p.suffix in (".sh", ".sbatch")
    ]
    scripts.append(str(LAUNCH.parent / ".ci" / "run"))
    done = subprocess.run(
        ["shellcheck", *scripts], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


def test_ranks_that_are_asked_to_stop_have_time_to_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun would kill them after 30 seconds, in the midst of an update."""
    from torch.distributed import run as torchrun

    from alia_ctx.cli import launch

    seen: list[float] = []

    def start(arguments: Any) -> None:
        seen.append(torchrun.config_from_args(arguments)[0].shutdown_timeout)

    monkeypatch.setattr(torchrun, "run", start)
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    handlers = {n: signal.getsignal(n) for n in launch.StopRequests.SIGNALS}
    try:
        assert launch.main(["--standalone", "-m", "alia_ctx.cli", "train"]) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.pop("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", None)
    assert seen[0] >= 3600
