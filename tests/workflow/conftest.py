"""What the tests of a second run share: a run to copy, and the module's scenarios on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed
from tests.small_run import write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `scenarios(rank, folder)` of the test's module saw, in a process of its own."""
    scenarios = request.module.scenarios
    return dict(run_distributed(scenarios, 1, str(folder), timeout=900)[0])
