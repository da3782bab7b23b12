"""Which jobs the batch script puts back into the queue; its variables; and the job of the data."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from alia_ctx.config.run import EngineConfig
from tests.cli.slurm_commands import log, start


@pytest.mark.parametrize(
    ("status", "requeued"),
    [
        (75, True),
        (1, False),
        (2, False),
        (3, False),
        (127, False),  # the shell found no such program
        (255, False),  # a container's starter
        (130, False),  # SIGINT: a person means the end
        (134, True),  # SIGABRT, by NCCL's watchdog
        (137, True),  # SIGKILL: out of memory, or srun's --wait
        (139, True),
        (143, True),  # SIGTERM
    ],
)
def test_only_status_75_and_the_killed_go_back_into_the_queue(
    cluster: dict[str, str], status: int, requeued: bool
) -> None:
    job = start(cluster, f"exit {status}", "run.yaml", "32k")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == (75 if requeued else status)
    assert ("scontrol requeue 77" in log(cluster)) is requeued
    said = f"killed by a signal, without a word of why (status {status})"
    assert (said in errors) is (requeued and status != 75)


@pytest.mark.parametrize("said", [1, 2, 3])
def test_a_mistake_that_a_rank_named_is_not_tried_again_though_others_were_killed(
    cluster: dict[str, str], said: int
) -> None:
    rank = f'echo {said} > "$ALIA_STATUS_DIR/0"; kill -KILL $$'
    job = start(cluster, rank, "run.yaml", "32k")
    job.communicate(timeout=30)
    assert job.returncode == said
    assert "requeue" not in log(cluster)


@pytest.mark.parametrize("progress", [True, False])
def test_starts_that_are_killed_come_to_an_end(
    cluster: dict[str, str], tmp_path: Path, progress: bool
) -> None:
    folders = {"ALIA_LOGS": str(tmp_path / "logs")}
    if progress:
        folders["ALIA_PROGRESS"] = str(tmp_path)
    for count in range(5):
        again = {**cluster, **folders, "SLURM_RESTART_COUNT": str(count)}
        job = start(again, "kill -KILL $$", "run.yaml", "32k")
        _, errors = job.communicate(timeout=30)
    assert ("have saved nothing" if progress else "requeued 4 times") in errors
    assert log(cluster).count("scontrol requeue 77") == 4


def test_ranks_have_the_time_to_notice_that_one_has_ended(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    words = '#!/bin/bash\nprintf "srun %s\\n" "$@" >>"$LOG"\n'
    (tmp_path / "srun").write_text(words)
    start(cluster, "", "run.yaml", "32k").communicate(timeout=30)
    engine = EngineConfig()
    slower = max(engine.timeout_minutes, engine.hang_minutes)
    [wait] = re.findall(r"--wait=(\d+)", log(cluster))
    assert int(wait) > 60 * slower
    own = {**cluster, "ALIA_WAIT_SECONDS": "7"}
    start(own, "", "run.yaml", "32k").communicate(timeout=30)
    assert "--wait=7\n" in log(cluster)


OWN = {
    "NCCL_NVLS_ENABLE": ("0", "1"),
    "CUDA_DEVICE_MAX_CONNECTIONS": ("1", "8"),
    "HF_HUB_OFFLINE": ("1", ""),
    "OMP_NUM_THREADS": ("8", "3"),
    "SRUN_CPUS_PER_TASK": ("20", "5"),
    "MASTER_ADDR": ("node7", "node7-ib0"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_variable_of_the_users_is_left_as_it_is(
    cluster: dict[str, str], name: str
) -> None:
    usual, own = OWN[name]
    cluster = {key: value for key, value in cluster.items() if key not in OWN}
    rank = f'echo "value ${name}" >>"$LOG"'
    for environment in (cluster, {**cluster, name: own}):
        start(environment, rank, "run.yaml", "32k").communicate(timeout=30)
    values = [n for n in log(cluster).splitlines() if n.startswith("value ")]
    assert values == [f"value {usual}", f"value {own}"]


# -- data: one process ---------------------------------------------------------------------

ONE_PROCESS = """#!/usr/bin/env bash
echo "python $*" >> "$LOG"
eval "$RANK_SCRIPT"
"""


def data(
    cluster: dict[str, str], folder: Path, script: str, **more: str
) -> subprocess.Popen[str]:
    (folder / "python").write_text(ONE_PROCESS)
    step = {"ALIA_STEP": "data", "ALIA_LOGS": str(folder / "logs")}
    step |= {"ALIA_PROGRESS": str(folder / "tokens")}
    return start({**cluster, **step, **more}, script, "run.yaml", "32k")


def test_the_job_of_the_data_tokenizes_and_packs(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    job = data(cluster, tmp_path, "exit 0")
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 0, errors
    started = [n for n in log(cluster).splitlines() if n.startswith("python")]
    assert [line.split("alia_ctx.cli ")[1] for line in started] == [
        "tokenize run.yaml",
        "pack run.yaml --stage 32k",
    ]


def test_the_job_of_the_data_does_what_it_is_told_word_by_word(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    lines = "tokenize '/a b/it'\"'\"'s $HOME *.yaml'\npack x --stage 'a b'"
    script = 'printf "<%s>" "${@:3}" >>"$LOG"; echo >>"$LOG"'
    job = data(cluster, tmp_path, script, ALIA_COMMANDS=lines)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 0, errors
    assert "<tokenize></a b/it's $HOME *.yaml>\n" in log(cluster)
    assert "<pack><x><--stage><a b>\n" in log(cluster)


def test_a_time_limit_ends_the_job_of_the_data_which_goes_on_later(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    script = f"trap 'touch {ended}; exit 143' TERM; touch {ready}; "
    script += "while true; do sleep 0.1; done"
    job = data(cluster, tmp_path, script)
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 75, errors
    assert ended.exists() and "time is nearly up" in errors
    assert "scontrol requeue 77" in log(cluster)
    assert "pack" not in log(cluster)


@pytest.mark.parametrize(("status", "requeued"), [(2, False), (1, False), (137, True)])
def test_the_job_of_the_data_fails_by_a_mistake_alone(
    cluster: dict[str, str], tmp_path: Path, status: int, requeued: bool
) -> None:
    job = data(cluster, tmp_path, f"exit {status}")
    job.communicate(timeout=30)
    assert job.returncode == (75 if requeued else status)
    assert ("scontrol requeue 77" in log(cluster)) is requeued


def test_a_job_of_the_data_that_gets_nowhere_ends(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tokens").mkdir()

    def status() -> int:
        job = data(cluster, tmp_path, "kill -KILL $$")
        job.communicate(timeout=30)
        return job.returncode

    assert [status() for _ in range(4)] == [75] * 4
    (tmp_path / "tokens/shard-000001.json").write_text("{}")
    assert [status() for _ in range(5)] == [75] * 4 + [1]
