"""The environment of a batch script."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.slurm_commands import stand_ins


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    return stand_ins(tmp_path)
