"""What `alia-ctx launch` writes for a machine without a queue, and what that script does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.spec.launch import LaunchSpec
from tests.small_run import write_run


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
