"""Variables of a launcher that were left in the environment, or are there in part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.ranks import Ranks
from tests.paths import python_path

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {
    "WORLD_SIZE": "2",
    "RANK": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def set_to(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            dict.fromkeys(NAMES[::2] + NAMES[3:]),
            "but not RANK, MASTER_ADDR, MASTER_PORT",
        ),
        ({"RANK": None}, "WORLD_SIZE=2 is set, but not RANK:"),
        ({"MASTER_ADDR": ""}, "but not MASTER_ADDR:"),
        ({"RANK": "2"}, "RANK is 2 of WORLD_SIZE=2"),
        ({"RANK": "x"}, "RANK='x' is no number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no number"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT='http' is no number"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], said: str
) -> None:
    left = {k: v for k, v in {**WHOLE, **changes}.items() if v is not None}
    set_to(monkeypatch, left)
    with (
        pytest.raises(CheckpointError, match=f"{said}.*torchrun.*unset WORLD_SIZE"),
        Ranks.from_environment(),
    ):
        pass


@pytest.mark.parametrize(
    "values", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"RANK": "0"}]
)
def test_one_process_needs_none_of_them(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> None:
    set_to(monkeypatch, values)
    with Ranks.from_environment() as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)


@pytest.mark.parametrize("command", ["import-hf", "export-hf"])
def test_a_command_ends_in_one_line(tmp_path: Path, command: str) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(
        [sys.executable, "-m", "alia_ctx.cli", command, "a", "b"],
        cwd=tmp_path,
        env={**kept, "WORLD_SIZE": "2", "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = "WORLD_SIZE=2 is set, but not RANK, MASTER_ADDR, MASTER_PORT"
    assert said in " ".join(done.stderr.split())
