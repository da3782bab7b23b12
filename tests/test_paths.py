"""What processes of tests import from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.paths import ROOT, given_path, python_path

# An environment of its own, with other releases of our packages.
APART = {"tests/evaluation/function_calling/oracle.py"}


def test_packages_that_are_given_by_the_path_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/opt/torch", "", str(ROOT)]))
    assert given_path() == "/opt/torch"
    assert python_path(tmp_path).split(os.pathsep) == [
        *(str(tmp_path), str(ROOT)),
        "/opt/torch",
    ]
    monkeypatch.delenv("PYTHONPATH")
    assert (given_path(), python_path()) == ("", str(ROOT))


def test_no_test_replaces_the_path() -> None:
    found = {
        (str(file.relative_to(ROOT)), value)
        for file in (ROOT / "tests").rglob("*.py")
        for value in re.findall(
            r"""["']PYTHONPATH["']: (.*)""", file.read_text("utf-8")
        )
        if file != Path(__file__)
    }
    assert len(found) > 8
    ways = ("python_path(", "given_path(")
    assert {file for file, value in found if not value.startswith(ways)} == APART
