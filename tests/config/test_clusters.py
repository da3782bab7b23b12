"""The machines that runs include and those that the planner knows by name are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from alia_ctx.config.load import read_config
from alia_ctx.config.schema import build
from alia_ctx.errors import Problems
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.launch import LaunchSpec
from alia_ctx.spec.machines import MACHINES
from tests.paths import ROOT

ALL = sorted((ROOT / "configs" / "clusters").glob("*.yaml"))
# What says only how jobs are started is put over one of the others.
FILES = [path for path in ALL if "cluster" in read_config(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_the_table_says(path: Path) -> None:
    problems = Problems()
    cluster = build(ClusterSpec, read_config(path)["cluster"], "cluster", problems)
    assert cluster is not None and not problems
    assert replace(cluster, nodes=1) == MACHINES[path.stem]
    assert not cluster.problems()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_what_a_file_says_of_the_queue_can_be_launched_with(path: Path) -> None:
    problems = Problems()
    launch = build(LaunchSpec, read_config(path).get("launch", {}), "launch", problems)
    assert launch is not None and not problems
    assert not launch.problems()


def test_every_machine_has_its_file() -> None:
    assert {path.stem for path in FILES} == set(MACHINES)
