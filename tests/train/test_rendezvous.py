"""A port that is taken where the ranks are to meet: one line, and status 75."""

from __future__ import annotations

import os
import socket
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from alia_ctx.errors import AliaError
from alia_ctx.train.rendezvous import meeting, rendezvous
from alia_ctx.train.stopping import RequeueError
from tests.small_run import alia, command, environment, write_run


def ranks(port: int, **variables: str) -> dict[str, str]:
    """The environment of a single rank that srun started."""
    return {
        **environment(),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **variables,
    }


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setitem(os.environ, name, value)


@pytest.mark.parametrize("where", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with socket.create_server((where, 0)) as other:
        port = other.getsockname()[1]
        set_environment(monkeypatch, ranks(port))
        named = f"port {port} of 127.0.0.1"
        with pytest.raises(RequeueError, match=named) as caught, rendezvous(free=True):
            pytest.fail("must be asked before the ranks meet")
    assert caught.value.exit_code == 75
    with rendezvous(free=True):
        pass


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("MASTER_PORT", "http", "MASTER_PORT='http' is no number"),
        ("MASTER_PORT", "", "RANK=0 is set, but not MASTER_PORT"),
        ("WORLD_SIZE", "", "RANK=0 is set, but not WORLD_SIZE"),
        ("RANK", "1", "RANK is 1 of WORLD_SIZE=1 ranks"),
    ],
)
def test_variables_by_which_nobody_could_meet(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    set_environment(monkeypatch, ranks(29500, **{name: value}))
    with pytest.raises(AliaError, match=f"{said}.*unset RANK"):
        meeting(timedelta(seconds=1))


def test_training_ends_in_one_line_to_be_requeued(tmp_path: Path) -> None:
    path = write_run(tmp_path, tokens=1024)
    assert alia("pack", str(path), "--stage", "short").returncode == 0
    train = command("train", str(path), "--stage", "short")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        variables = ranks(port, ALIA_STATUS_DIR=str(tmp_path))
        done = subprocess.run(
            train, env=variables, capture_output=True, text=True, timeout=400
        )
    assert (tmp_path / "0").read_text() == "75\n"  # as the SLURM script reads it
    assert done.returncode == 75, done.stderr
    *doing, line = done.stderr.splitlines()
    assert doing[0].startswith("alia-ctx ") and len(doing) <= 3, done.stderr
    assert line.startswith(f"rank 0: RequeueError: port {port} of 127.0.0.1")
    assert not (tmp_path / "out" / "stages").exists()


def test_a_port_taken_in_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RANK", "1")  # whoever does not listen cannot ask
    with pytest.raises(RequeueError, match="cannot meet"), rendezvous(free=True):
        raise dist.DistNetworkError("no listener\nand\nmore")


def test_torchruns_own_listener_is_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as agent:
        port = agent.getsockname()[1]
        set_environment(monkeypatch, ranks(port, TORCHELASTIC_USE_AGENT_STORE="True"))
        with rendezvous(free=True):
            pass
