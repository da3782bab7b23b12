"""Host memory that this process may take: of the machine, and of its job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_V1, _V2 = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("memory.max", "memory.current", "inactive_file"),
)


def available_memory(groups: Path = _GROUPS, mount: Path = _MOUNT) -> int:
    """Bytes: those of the machine, or those that are left of a limit of the control groups
    (cgroup v1 and v2) that this process is in, as jobs of SLURM and containers have, if
    they are fewer. Beyond a limit a process is killed without a word.
    """
    left = (max(0, most - used) for most, used in _limits(groups, mount))
    return min([int(psutil.virtual_memory().available), *left])


def total_memory(groups: Path = _GROUPS, mount: Path = _MOUNT) -> int:
    """Bytes: all of the machine, or the least limit of those control groups."""
    limits = (most for most, _ in _limits(groups, mount))
    return min([int(psutil.virtual_memory().total), *limits])


def _limits(groups: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Each limit, and what is used of it: file pages that the kernel can drop are not."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = mount / "memory" if controllers else mount
        limit, usage, droppable = _V1 if controllers else _V2
        place = root / path.lstrip("/")
        # Where a container has another view of the tree its own group is at the root.
        for group in (place, *place.parents):
            try:
                most, used = (
                    int((group / name).read_text()) for name in (limit, usage)
                )
                stat = (group / "memory.stat").read_text().split()
                file = int(stat[stat.index(droppable) + 1])
            except (OSError, ValueError):  # `max`, or a group without limits
                file = most = used = 0
            if most:
                yield most, used - file
            if group == root:
                break
