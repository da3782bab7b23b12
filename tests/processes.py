"""Processes that a test has started, and theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.paths import ROOT, python_path


def python_on_a_host(
    *arguments: str, first: tuple[Path, ...] = (), timeout: float = 300, **more: str
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in the checkout, where no GPU is to be seen, importing from `first`
    before all else; `more` are variables of its environment.
    """
    own = {"PYTHONPATH": python_path(*first), "CUDA_VISIBLE_DEVICES": "", **more}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


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
