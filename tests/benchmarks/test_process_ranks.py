"""Ranks that fail, hang or go silent end, with all that they started."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.process_ranks import run_ranks
from tests.processes import are_gone

PROGRAM = """
import os, sys, time
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
open(f"{sys.argv[1]}/{rank}.pid", "w").write(str(os.getpid()))
print(f"rank {rank} of {world} at {os.environ['MASTER_PORT'].isdigit()}")
"""


def run(folder: Path, program: str, limit: float = 60, **options: float) -> str | None:
    file = folder / "program.py"
    file.write_text(PROGRAM + program)
    began = time.monotonic()
    ended = run_ranks([str(file), str(folder)], 2, limit=limit, **options)  # type: ignore[arg-type]
    assert time.monotonic() - began < 50
    assert ended.output == "rank 0 of 2 at True\n"
    assert are_gone({int(f.read_text()) for f in folder.glob("*.pid")}, 5)
    return ended.problem


def test_all_end_well(tmp_path: Path) -> None:
    assert run(tmp_path, "") is None


def test_one_fails_and_the_other_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.process_ranks._GRACE", 0.5)
    said = run(
        tmp_path, "sys.stdout.flush()\nif rank: sys.exit('broken')\ntime.sleep(99)"
    )
    assert said == "ended with status 1: rank 1: broken"


def test_a_deaf_rank_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sys.stdout.flush(); time.sleep(99)"
    )
    assert run(tmp_path, deaf, limit=3) == "killed after 3 s"


def test_silence_is_noticed(tmp_path: Path) -> None:
    said = run(tmp_path, "sys.stdout.flush(); time.sleep(99)", silence=3)
    assert said == "killed after 3 s without a word"
