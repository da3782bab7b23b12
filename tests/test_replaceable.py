"""What a command writes where a person says never takes the place of another's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.errors import ConfigError
from tests.small_run import write_run

COMMANDS = {
    "trace.json": ("plan", "--stage", "short", "--trace"),
    "plot.png": ("rope", "--stage", "short", "--plot"),
    "plot.svg": ("rope", "--stage", "short", "--plot"),
    "page.html": ("report", "--output"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_only_what_the_command_made_itself_is_replaced(
    tmp_path: Path, name: str
) -> None:
    config, place = write_run(tmp_path), tmp_path / "there" / name
    (tmp_path / "out").mkdir(exist_ok=True)
    command, *options = COMMANDS[name]

    def write(target: Path) -> object:
        arguments = [command, str(config), *options, str(target)]
        return CliRunner().invoke(app, arguments).exception

    place.parent.mkdir()
    place.write_text('{"mine": "<!doctype html>"}')
    refused = write(place)
    assert isinstance(refused, ConfigError) and "would be lost" in str(refused)
    assert json.loads(place.read_text()) == {"mine": "<!doctype html>"}
    for other in (config, tmp_path / "weights.safetensors"):
        before = other.read_bytes() if other.exists() else None
        assert isinstance(write(other), ConfigError)
        assert (other.read_bytes() if other.exists() else None) == before
    place.unlink()
    for _ in range(2):  # its own is replaced
        place.parent.mkdir(exist_ok=True)
        assert not isinstance(write(place), ConfigError)
    assert place.stat().st_size > 100
