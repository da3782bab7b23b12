"""A run that was never stopped, with which the tests of the trainer compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_run import write_run
from tests.train.runs import start


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert start(write_run(folder), ranks=2) == ""
    return folder
