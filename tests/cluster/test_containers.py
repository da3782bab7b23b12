"""The recipes of the images: what can be held without a registry. Their pip lines are run
against an environment that has the packages, without a network and without installing.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.paths import ROOT

CONTAINERFILE = ROOT / "launch" / "Containerfile"
APPTAINER = ROOT / "launch" / "apptainer.def"


def pip_lines(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    lines = re.findall(r"^\s*(?:RUN )?(pip install [^|\n]*)", text, re.MULTILINE)
    return [line.strip() for line in lines]


def test_both_recipes_install_the_same_on_the_same_base() -> None:
    assert pip_lines(CONTAINERFILE) == pip_lines(APPTAINER)
    assert len(pip_lines(CONTAINERFILE)) == 3
    [base] = re.findall(r"^ARG BASE=(\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert f"From: {base}\n" in APPTAINER.read_text()
    for image in (base, *re.findall(r"BASE=(\S+)", CONTAINERFILE.read_text())):
        assert re.fullmatch(r"[a-z0-9.]+(/[a-z0-9-]+)+:[\w.-]+", image), (
            "a tag that stays"
        )
        assert not image.endswith(":latest")


def test_what_is_installed_is_pinned_and_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extras] = re.findall(
        r"^ARG EXTRAS=(\S+)$", CONTAINERFILE.read_text(), re.MULTILINE
    )
    assert extras in project["optional-dependencies"]
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower()
        for name in re.findall(
            r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE
        )
    }
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("_", "-")
        assert name in pinned, f"{name} has no line in constraints.txt"
    assert all("-c constraints.txt" in line for line in pip_lines(CONTAINERFILE))


def test_files_that_are_copied_are_there_and_all_that_the_package_is_made_of() -> None:
    copied = re.findall(r"^COPY (.+) /src\S*$", CONTAINERFILE.read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert all((ROOT / name).exists() for name in names)
    into = re.findall(r"^    (\S+) /src/", APPTAINER.read_text(), re.MULTILINE)
    assert sorted(into) == sorted(names)


@pytest.mark.parametrize("line", [pip_lines(CONTAINERFILE)[1]])
def test_the_requirements_resolve_without_a_network(line: str, tmp_path: Path) -> None:
    source = tmp_path / "src"
    for name in ("alia_ctx", "configs", "launch"):
        clean = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=clean)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = [*shlex.split(line)[1:], "--dry-run", "--no-index"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Would install alia-ctx" in done.stdout
