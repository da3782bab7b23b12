"""A broken package is an installed one; needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.installed import is_installed

BROKEN = "raise RuntimeError('built for another torch')\n"
FILES = {
    "flash4": ("flash_attn/cute/__init__.py", "flash_attn/__init__.py"),
    "flash3": ("flash_attn_interface.py",),
    "flash2": ("flash_attn/flash_attn_interface.py", "flash_attn/__init__.py"),
    "te": ("transformer_engine/__init__.py",),
    "torchtitan": ("torchtitan/__init__.py",),
}
OTHER = {"flash4": "flash2", "flash2": "flash4"}  # share a folder


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(BROKEN)


@pytest.mark.parametrize("name", FILES)
def test_broken_files_are_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *FILES[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    assert is_installed(name)


@pytest.mark.parametrize("name", FILES)
def test_without_files_what_pip_knows_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert not is_installed(name)
    write(tmp_path, *(FILES[OTHER[name]] if name in OTHER else ()))
    assert not is_installed(name), "what shares its folder is another package"
    known = {"te": "transformer_engine"}.get(name, "")
    known = known or {"flash4": "flash_attn_4", "flash3": "flash_attn_3"}.get(name, "")
    known = known or name.replace("flash2", "flash_attn")
    info = tmp_path / f"{known}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {known.replace('_', '-')}\nVersion: 1.0\n")
    assert is_installed(name)
