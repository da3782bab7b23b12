"""What surrounds a command: variables of a launcher, and who reads what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_run import command, environment, write_run


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "²"])
def test_a_rank_that_is_no_number_is_said(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alia_ctx.cli", "doctor"],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name}={value!r} is no number") and "unset it" in line


def test_a_rank_beyond_all_of_them_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alia_ctx.cli", "doctor"],
        env={**os.environ, "RANK": "4", "WORLD_SIZE": "4"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("RANK is 4 of WORLD_SIZE=4 ranks: unset it")


def test_an_empty_one_is_none(tmp_path: Path) -> None:
    empty = dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), "")
    done = subprocess.run(
        command("plan", str(write_run(tmp_path))),
        env={**environment(), **empty},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("alia-ctx ") and done.stdout


@pytest.mark.parametrize("name", ["plan", "rope"])
def test_a_reader_that_has_enough_ends_it_quietly(name: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `head` has read its lines
    try:
        done = subprocess.run(
            command(name, str(write_run(tmp_path))),
            env=environment(),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert "a package asked" not in done.stderr
