"""Models that the tests of conversion start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hf_models import (
    save_model,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_model(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_model(tmp_path / "hf", rope="linear")
    return tmp_path / "hf"
