"""What messages tell a user to give is there: commands and their options, and keys of the
configuration. Read from the source: every string of the package.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

import alia_ctx
from alia_ctx.cli.run_commands import app
from alia_ctx.config.json_schema import run_schema

ROOT = Path(alia_ctx.__file__).parent
# Commands of other programs, and pages of HTML, whose variables begin with `--`.
OTHERS = {"hf/serving_commands.py", "report/html.py", "cluster/batch.py"}
# Options of other programs that messages name.
ELSEWHERE = {
    *("--nproc-per-node", "--nnodes", "--standalone"),  # torchrun
    *("--gres", "--shm-size", "--ipc", "--name", "--nv"),  # SLURM, containers
    *("--long", "--score-dir", "--no-deps"),  # zstd, bfcl, pip
    "--no-build-isolation",  # pip
}


def options(command: str) -> set[str]:
    click = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return {name for parameter in click.params for name in parameter.opts}


@cache
def commands() -> dict[str, set[str]]:
    names = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: options(name) | {"--help"} for name in names}


def strings() -> Iterator[tuple[str, str]]:
    """(file and line, text) of every string that is no docstring; `{}` for what is put in."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name in OTHERS:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        documented = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        inside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) in documented or id(node) in inside:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{name}:{node.lineno}", node.value
            elif isinstance(node, ast.JoinedStr):
                yield f"{name}:{node.lineno}", whole(node)


def whole(node: ast.JoinedStr) -> str:
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "{}"
        for part in node.values
    )


STRINGS = list(strings())


def test_the_strings_are_read() -> None:
    assert len(STRINGS) > 5000
    assert any("alia-ctx evaluate" in text for _, text in STRINGS)


def test_commands_that_are_named_are_there_with_their_options() -> None:
    wrong = []
    for where, text in STRINGS:
        for named in re.finditer(r"alia-ctx ([a-z][a-z-]+)([^`\n;]*)", text):
            if named[1] not in commands():
                if "`alia-ctx" in text:
                    wrong.append(f"{where}: there is no command {named[1]}")
                continue
            given = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", named[2]))
            lacking = given - commands()[named[1]]
            wrong += [f"{where}: {named[1]} has no {name}" for name in lacking]
    assert not wrong, "\n".join(wrong)


def test_options_that_are_named_are_of_a_command() -> None:
    known = set().union(*commands().values()) | ELSEWHERE
    wrong = [
        f"{where}: no command has {name}"
        for where, text in STRINGS
        for name in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
        if " " in text and name not in known
    ]
    assert not wrong, "\n".join(wrong)


def keys(schema: dict[str, object], of: dict[str, object]) -> dict[str, object] | None:
    """Properties of a part of the schema; None where names are the user's own."""
    if "$ref" in of:
        name = str(of["$ref"]).rpartition("/")[2]
        of = schema["$defs"][name]  # type: ignore[index]
    for alternative in of.get("anyOf", []):  # type: ignore[attr-defined]
        if (found := keys(schema, alternative)) is not None:
            return found
    return of.get("properties")  # type: ignore[return-value]


@pytest.mark.parametrize("section", ["evaluation", "data", "engine", "checkpoint"])
def test_keys_that_are_named_are_of_the_configuration(section: str) -> None:
    """`evaluation.held_out` and the like, as deep as names are the schema's."""
    schema = run_schema()
    top = keys(schema, {"$ref": "#/$defs/RunConfig"})
    assert top and section in top
    wrong, looked = [], 0
    for where, text in STRINGS:
        pattern = rf"(?<![\w./-]){section}((?:\.[a-z_]+)+)(?![\w/(])"
        for named in re.finditer(pattern, text):
            place = keys(schema, top[section])  # type: ignore[arg-type]
            for part in named[1].strip(".").split("."):
                if place is None:
                    break
                looked += 1
                if part not in place:
                    wrong.append(f"{where}: {named[0]}")
                    break
                place = keys(schema, place[part])  # type: ignore[arg-type]
    assert looked and not wrong, "\n".join(wrong)
