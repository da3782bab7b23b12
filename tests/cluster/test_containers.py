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
MEASURED = ROOT / "launch" / "constraints-gpu.txt"


def pip_lines(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    lines = re.findall(r"^\s*(?:RUN )?(pip install [^|\n]*)", text, re.MULTILINE)
    return [line.strip() for line in lines]


def test_both_recipes_install_the_same_on_the_same_base() -> None:
    assert pip_lines(CONTAINERFILE) == pip_lines(APPTAINER)
    [base] = re.findall(r"^ARG BASE=(\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert f"From: {base}\n" in APPTAINER.read_text()
    for image in (base, *re.findall(r"BASE=(\S+)", CONTAINERFILE.read_text())):
        assert re.fullmatch(r"[a-z0-9.]+(/[a-z0-9-]+)+:[\w.-]+", image), (
            "a tag that stays"
        )
        assert not image.endswith(":latest")


def test_what_is_installed_is_pinned_and_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    kernels = [shlex.split(line)[-1] for line in pip_lines(CONTAINERFILE)[2:]]
    assert kernels == project["optional-dependencies"]["gpu"], "each in its own line"
    for file in (ROOT / "constraints.txt", MEASURED):
        pinned = pins(file)
        for requirement in project["dependencies"]:
            name = re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("_", "-")
            assert name in pinned, f"{name} has no line in {file.name}"
    option = f"-c {MEASURED.relative_to(ROOT)}"
    assert all(option in line for line in pip_lines(CONTAINERFILE))


def pins(file: Path) -> dict[str, str]:
    lines = re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}


def test_what_is_pinned_for_gpus_is_what_was_measured() -> None:
    """As the page on software has it, release by release."""
    page = (ROOT / "docs" / "gpu-software.md").read_text()
    rows = re.findall(
        r"^\| ([\w, -]+) \| (\d\S*)(?: \([^|]*|, with ([^|]*))? \|", page, re.MULTILINE
    )
    measured = {
        name: version.partition("+")[0].rstrip(",") for name, version, _ in rows
    }
    more = re.findall(
        r"([a-z][\w-]+) (\d[\w.]*)", " ".join(with_ for *_, with_ in rows)
    )
    pinned = pins(MEASURED)
    assert {"torch", "transformers", "flash-attn-4", "transformer-engine"} <= {
        *measured
    }
    assert {"nvidia-cutlass-dsl", "quack-kernels"} <= {name for name, _ in more}
    for name, version in [*measured.items(), *more]:
        if name in pinned:  # peers and what is on no index are not
            assert re.match(rf"{re.escape(version)}(\.|$)", pinned[name]), name


def build(recipe: Path, folder: Path, fails: str) -> subprocess.CompletedProcess[str]:
    """The steps of a recipe, with a pip that cannot install what has `fails` in its name."""
    stand_ins = {
        "pip": f'echo "pip $*"; case "${{@: -1}}" in {fails}) exit 1;; esac',
        "python3": "true",
        "alia-ctx": 'echo "alia-ctx $*" >&2',
    }
    for name, script in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    text = recipe.read_text()
    if recipe == APPTAINER:
        script = text.partition("%post\n")[2].replace("cd /src", f"cd {folder}")
    else:
        steps = re.findall(r"^RUN (.*)$", text.replace("\\\n", " "), re.MULTILINE)
        script = "\n".join(f"( {step} ) || exit" for step in steps)
    return subprocess.run(
        ["sh", "-c", script],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("recipe", [CONTAINERFILE, APPTAINER], ids=lambda p: p.name)
@pytest.mark.parametrize("kernel", ["flash-attn-4*", "flash-attn\\>*", "transformer*"])
def test_a_kernel_that_cannot_be_had_is_said_and_keeps_no_other_away(
    recipe: Path, kernel: str, tmp_path: Path
) -> None:
    done = build(recipe, tmp_path, kernel)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install") == len(pip_lines(recipe)) == 5
    said = [n for n in done.stderr.splitlines() if "NOT INSTALLED" in n]
    assert len(said) == 1
    assert kernel.replace("\\", "").rstrip("*") in said[0]
    assert "alia-ctx --help" in done.stderr


@pytest.mark.parametrize("recipe", [CONTAINERFILE, APPTAINER], ids=lambda p: p.name)
@pytest.mark.parametrize("essential", [".", "packaging"])
def test_without_what_is_essential_there_is_no_image(
    recipe: Path, essential: str, tmp_path: Path
) -> None:
    done = build(recipe, tmp_path, essential)
    assert done.returncode != 0
    assert "alia-ctx --help" not in done.stderr


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
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # The releases of this environment, which is a host's.
    shutil.copy(ROOT / "constraints.txt", source / MEASURED.relative_to(ROOT))
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
