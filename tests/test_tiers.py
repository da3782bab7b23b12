"""The fast tier leaves out what starts processes, however a test comes to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import golden, text_data
from tests.distributed import run_distributed
from tests.golden import figures
from tests.tiers import may_start


class Runner:
    def run(self) -> None:
        run_distributed(print, 2)


def by_name() -> None:
    run_distributed(print, 2)


def by_a_module() -> None:
    figures.make()


def by_a_function() -> None:
    def inner() -> None:
        by_name()

    inner()


def by_a_class() -> None:
    Runner().run()


def by_a_program() -> None:
    subprocess.run(["true"], check=True)


def by_nothing() -> None:
    assert Path("/") and golden and text_data


@pytest.mark.parametrize(
    "test", [by_name, by_a_module, by_a_function, by_a_class, by_a_program]
)
def test_what_starts_processes_is_seen(test: object) -> None:
    assert may_start(test)


def test_what_starts_none_is_kept() -> None:
    assert not may_start(by_nothing)
