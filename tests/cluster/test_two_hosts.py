"""Two hosts with networks of their own: ranks that meet over torchrun's rendezvous and over
SLURM's variables, a cable that is cut in the midst of an update, and one that is slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import Machines, missing
from tests.cluster.slow_cli import GATE, allow
from tests.cluster.slurm import wait_for
from tests.distributed import run_distributed
from tests.paths import ROOT, python_path
from tests.small_run import alia, metrics, state_checksums, write_run
from tests.train.runs import last, numbers, train

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() != "", reason=f"no machines here: {missing()}"),
    pytest.mark.timeout(1800),
]
OVERRIDES = ["metrics.sinks=[]", "cluster.nodes=2"]
RDZV = "--rdzv-backend=c10d --rdzv-endpoint=one:29511 --rdzv-id=run"
STATIC = "--master-addr=one --master-port=29512 --node-rank={rank}"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with Machines(tmp_path_factory.mktemp("machines")) as machines:
        yield machines


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm")
    path = write_run(folder)
    assert alia("pack", str(path), "--stage", "short").returncode == 0
    run_distributed(train, 2, str(path), OVERRIDES)
    return folder


def start(
    hosts: Machines, path: Path, *overrides: str, by: str = RDZV
) -> list[subprocess.Popen[str]]:
    """`alia-ctx train` on both hosts, a rank each, as far as it is allowed to."""
    ranks = []
    for rank, host in enumerate(hosts.nodes):
        launcher = ["--nnodes=2", "--nproc-per-node=1", *by.format(rank=rank).split()]
        command = [sys.executable, "-m", "alia_ctx.cli.launch", *launcher]
        command += [
            "-m",
            "tests.cluster.slow_cli",
            "train",
            str(path),
            "--stage",
            "short",
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": python_path(),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "data0",
            GATE: str(path.parent / "allowed"),
        }
        ranks.append(
            subprocess.Popen(
                hosts.inside(host, [*command, *OVERRIDES, *overrides]),
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def ends(ranks: list[subprocess.Popen[str]], seconds: float) -> tuple[list[int], str]:
    try:
        said = "".join(rank.communicate(timeout=seconds)[1] for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], said


def updates(folder: Path) -> int:
    try:
        return len(metrics(folder))
    except (OSError, ValueError):
        return 0


def test_a_cable_that_is_cut_ends_in_status_75_and_one_host_goes_on(
    hosts: Machines, calm: Path, tmp_path: Path
) -> None:
    path = write_run(tmp_path)
    assert alia("pack", str(path), "--stage", "short").returncode == 0
    allow(tmp_path / "allowed", "short", 4)
    ranks = start(hosts, path, "engine.timeout_minutes=0.4")
    wait_for(lambda: updates(tmp_path) >= 4, "update 4", seconds=900)
    hosts.cut()
    allow(tmp_path / "allowed", "short", 12)
    try:
        # 24 s of the time-out, and the roll call.
        statuses, said = ends(ranks, 120)
    finally:
        hosts.mend()
    assert statuses == [75, 75], said
    assert "lost touch with other ranks" in said and "Traceback" not in said
    assert "all ranks still answer: look at the network of one, two" in said
    assert updates(tmp_path) == 4
    # The same stage on one host, with both ranks on it.
    done = alia("train", str(path), "--stage", "short", *OVERRIDES, ranks=2)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path) == numbers(calm)
    assert state_checksums(last(tmp_path)) == state_checksums(last(calm))


def test_a_slow_cable_shows_in_the_log_and_changes_nothing_else(
    hosts: Machines, calm: Path, tmp_path: Path
) -> None:
    path = write_run(tmp_path)
    assert alia("pack", str(path), "--stage", "short").returncode == 0
    hosts.slow_down("two", rate="1mbit", delay="100ms")
    try:
        allow(tmp_path / "allowed", "short", 12)
        statuses, said = ends(start(hosts, path, by=STATIC), 900)
    finally:
        hosts.speed_up("two")
    assert statuses == [0, 0], said
    assert numbers(tmp_path) == numbers(calm)
    # The least: other work on this machine makes some of both longer.
    waits, before = (
        min(line["communication_seconds"] for line in metrics(folder))
        for folder in (tmp_path, calm)
    )
    assert waits > 0.1 and waits > 3 * before
