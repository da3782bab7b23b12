"""The command line of version 0.1: every command and option that it had is there still."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest
import typer
import typer.main

from alia_ctx import cli
from alia_ctx.cli.arguments import path
from alia_ctx.cli.run_commands import app
from tests.paths import ROOT

# Command -> its arguments in order, its options.
COMMANDS: dict[str, tuple[list[str], set[str]]] = {
    "check": (["config", "overrides"], set()),
    "plan": (["config", "overrides"], {"--stage"}),
    "tokenize": (["config", "overrides"], {"--source", "--overwrite"}),
    "pack": (["config", "overrides"], {"--stage", "--inspect", "--overwrite"}),
    "train": (["config", "overrides"], {"--stage", "--exit-before"}),
    "evaluate": (["config", "overrides"], {"--stage", "--context", "--update"}),
    "report": (["runs"], {"--live", "--every", "--output"}),
    "rope": (["config", "overrides"], {"--stage", "--json", "--plot"}),
    "ablate": (
        ["config", "overrides"],
        {"--stage", "--choices", "--seeds", "--json"},
    ),
    "run": (["config", "overrides"], set()),
    "import-hf": (["hf_dir", "checkpoint"], {"--dtype", "--overwrite"}),
    "export-hf": (
        ["checkpoint", "hf_dir"],
        {
            "--dtype",
            "--overwrite",
            "--shard-size",
            "--tokenizer",
            "--check",
            "--no-check",
        },
    ),
    "verify": (["hf_dir", "checkpoint"], {"--weights-only", "--tolerance"}),
}
ALIA = str(ROOT / "configs" / "alia-40b.yaml")


def parameters(command: click.Command) -> tuple[list[str], set[str]]:
    arguments = [
        p.name or "" for p in command.params if p.param_type_name == "argument"
    ]
    options = {
        name
        for p in command.params
        if p.param_type_name == "option"
        for name in (*p.opts, *p.secondary_opts)
    }
    return arguments, options - {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_keep_their_arguments_and_options(name: str) -> None:
    commands = typer.main.get_group(app).commands
    arguments, options = parameters(commands[name])
    assert arguments == COMMANDS[name][0]
    assert options >= COMMANDS[name][1]


def test_every_command_is_registered_once() -> None:
    names = [
        command.name or command.callback.__name__  # type: ignore[union-attr]
        for command in app.registered_commands
    ]
    assert len(names) == len(set(names))
    assert set(names) >= set(COMMANDS)


def test_the_entry_point_is_the_modules_main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["alia-ctx"].partition(":")
    assert (module, getattr(cli, function)) == ("alia_ctx.cli", cli.main)


def test_python_m_runs_it_and_a_name_may_lack_its_suffix(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alia_ctx.cli", "check", ALIA.removesuffix(".yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "25 x 163,840" in done.stdout


def test_every_path_may_be_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers = [
        (command.name, name, hint.__metadata__[0].parser)
        for command in app.registered_commands
        for name, hint in get_type_hints(command.callback, include_extras=True).items()
        if Path in (hint, *get_args(hint)) or (Path | None) in get_args(hint)
    ]
    assert len(parsers) >= 15
    assert {parser for *_, parser in parsers} == {path}, parsers
    monkeypatch.setenv("HOME", "/home/somebody")
    assert path("~/x") == Path("/home/somebody/x")
    with pytest.raises(typer.BadParameter, match="no such home"):
        path("~nobody-here/x")
