"""The helper that runs process groups:

results, a child's traceback, time-outs, and nothing left behind.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_distributed


def sum_of_ranks(rank: int, factor: int) -> float:
    value = torch.tensor([float(rank * factor)])
    dist.all_reduce(value)
    return value.item()


def fail_on_rank_one(rank: int) -> None:
    if rank == 1:
        raise ValueError("a reason of its own")
    dist.barrier()


def hang_with_a_grandchild(rank: int, folder: str) -> None:
    """Both ranks start a process; then rank 1 fails while rank 0 hangs."""
    grandchild = subprocess.Popen(["sleep", "600"])
    note = Path(folder) / f"{rank}.part"
    note.write_text(f"{os.getpid()} {grandchild.pid}")
    note.rename(Path(folder) / str(rank))
    while rank == 0 or not (Path(folder) / "0").exists():
        time.sleep(0.05)
    raise ValueError("after both have started")


def hang(rank: int) -> None:
    time.sleep(600)


def die(rank: int) -> None:
    os._exit(7)


def test_results_come_back_by_rank() -> None:
    assert run_distributed(sum_of_ranks, 3, 10) == [30.0] * 3


def threads_of_the_server(rank: int) -> int:
    status = Path(f"/proc/{os.getppid()}/status").read_text()
    return int(status.split("Threads:")[1].split()[0])


def test_the_server_has_one_thread() -> None:
    """A child of one with more may wait for ever for a lock that another thread held."""
    assert run_distributed(threads_of_the_server, 1) == [1]


def test_a_childs_traceback_is_raised() -> None:
    with pytest.raises(
        AssertionError,
        match=r"(?s)rank 1 failed.*fail_on_rank_one.*a reason of its own",
    ):
        run_distributed(fail_on_rank_one, 2)


def test_a_dead_child_is_noticed() -> None:
    with pytest.raises(AssertionError, match="ended with status 7"):
        run_distributed(die, 2)


def test_a_time_out_names_the_silent_ranks() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] gave no result in 3 s"):
        run_distributed(hang, 2, timeout=3)


def test_children_and_grandchildren_are_killed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="after both have started"):
        run_distributed(hang_with_a_grandchild, 2, str(tmp_path))
    started = [
        int(pid) for file in tmp_path.iterdir() for pid in file.read_text().split()
    ]
    assert len(started) == 4
    deadline = (
        time.monotonic() + 20
    )  # a killed process goes when the kernel gets to it, on a busy machine too
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in started if is_running(pid)]


def is_running(pid: int) -> bool:
    """Whether `pid` lives; a killed grandchild may be a zombie until its new parent looks."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            not in "ZX"
        )
    except FileNotFoundError:
        return False
