"""Where a rank of this start would be that has not come."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache

_ASK_SECONDS = 10


def absent_rank(rank: int, hosts: Mapping[int, str], world_size: int) -> str:
    """A rank by number and host, as far as SLURM tells, or another rank of its host that
    has come. `hosts`: of the ranks that are there.
    """
    planned = _hosts_of_slurm()
    if len(planned) == world_size:
        return f"rank {rank} on {planned[rank]}"
    a_host = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)  # set by torchrun
    for other, host in hosts.items():
        if other // a_host == rank // a_host:
            return f"rank {rank} on {host}"
    return f"rank {rank}"


@cache
def _hosts_of_slurm() -> list[str]:
    """The host of each rank of this step, which srun fills node after node; nothing where
    there is no step, or its nodes cannot be told.
    """
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
    if not nodes or not tasks or shutil.which("scontrol") is None:
        return []
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return []
    hosts, counts = done.stdout.split(), tasks_of_nodes(tasks)
    if len(hosts) != len(counts):
        return []
    return [host for host, n in zip(hosts, counts, strict=True) for _ in range(n)]


def tasks_of_nodes(text: str) -> list[int]:
    """Tasks of each node, of SLURM's `4(x2),3`."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
