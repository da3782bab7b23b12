"""The wheel works where there is no checkout: build, install, run."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import alia_ctx
from tests.paths import ROOT, given_path

SOURCES = ["alia_ctx", "configs", "launch"]
FILES = ["pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"]
CLEAN = shutil.ignore_patterns("__pycache__", "*.egg-info")


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command without this checkout on Python's path."""
    hidden = {"PYTHONHOME", "VIRTUAL_ENV"}
    variables = {name: v for name, v in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**variables, "PYTHONPATH": given_path(), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by `make wheel`, which docs/your-own-model.md begins with, in a copy, as
    setuptools leaves `build/` in the tree that it builds.
    """
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=CLEAN)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    (source / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", source / "scripts")
    (source / ".venv").mkdir()
    (source / ".venv" / "ready").touch()  # this interpreter's environment stands for it
    made = run("make", "wheel", f"BIN={Path(sys.executable).parent}", cwd=source)
    [built] = (source / "dist").glob("*.whl")
    assert f"dist/{built.name}" in made
    assert "`make wheel`" in (ROOT / "docs" / "your-own-model.md").read_text("utf-8")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, and this one's packages behind it.

    They come by a path in a .pth file: such a folder's own .pth files are not read, so
    that the editable install of the checkout stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (purelib / "packages.pth").write_text("\n".join(site.getsitepackages()))
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps")
    run(*pip, "--no-index", "--ignore-installed", wheel, cwd=folder)
    return folder


def test_wheel_has_what_the_checkout_has(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    prefix = f"alia_ctx-{alia_ctx.__version__}.data/data/share/alia-ctx"
    expected = {str(f.relative_to(ROOT)) for f in (ROOT / "alia_ctx").rglob("*.py")}
    for folder in ("configs", "launch"):
        files = [f for f in (ROOT / folder).rglob("*") if f.is_file()]
        expected |= {f"{prefix}/{f.relative_to(ROOT)}" for f in files}
    assert expected | {"alia_ctx/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith("tests")]


def test_installed_commands_run_without_the_checkout(
    environment: Path, tmp_path: Path
) -> None:
    where = "import alia_ctx; print(alia_ctx.__file__, alia_ctx.__version__)"
    path, version = run(
        environment / "bin" / "python", "-c", where, cwd=tmp_path
    ).split()
    assert Path(path).is_relative_to(environment) and version == alia_ctx.__version__

    command = environment / "bin" / "alia-ctx"
    shown = run(command, "--help", cwd=tmp_path)
    assert all(name in shown for name in ("check", "train", "export-hf"))

    example = environment / "share" / "alia-ctx" / "configs" / "alia-40b.yaml"
    assert "163,840" in run(command, "plan", example, cwd=tmp_path)
