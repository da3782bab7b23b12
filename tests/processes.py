"""Processes that a test has started, and theirs."""

from __future__ import annotations

import time
from pathlib import Path


def children_of(process: int) -> set[int]:
    tasks = Path(f"/proc/{process}/task/{process}/children")
    return (
        {int(each) for each in tasks.read_text().split()} if tasks.exists() else set()
    )


def are_gone(processes: set[int], seconds: float = 30) -> bool:
    """Whether all of them end within some seconds."""
    deadline = time.monotonic() + seconds
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(_is_alive, processes))


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
