"""What `doctor` finds, and what it would find on machines that are not here."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.cluster import disk, links, software
from alia_ctx.cluster.findings import Finding, good, merged, weak
from alia_ctx.cluster.gpus import read_health
from alia_ctx.config.load import load_plan
from tests.distributed import run_distributed
from tests.paths import ROOT
from tests.small_run import write_run


class SlowRank:
    """Rank 1 multiplies twelve times as often."""

    def __call__(self, rank: int) -> None:
        original = links._least

        def least(action: Any, repeats: int) -> float:
            again = 12 if rank == 1 and action.__name__ == "multiply" else 1
            return original(lambda: [action() for _ in range(again)], repeats)

        links._least = least


def found(rank: int, path: str, place: str, sabotage: Any = None) -> list[Finding]:
    if sabotage is not None:
        sabotage(rank)
    run, _ = load_plan(
        path, ["cluster.ranks_per_node=2", "cluster.host_memory_gib=0.5"]
    )
    return workflow.examine(run, Path(place))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_two_ranks_look_together_and_name_the_slow_one(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    first, second = run_distributed(
        found, 2, str(path), str(tmp_path / "out"), SlowRank()
    )
    assert first == second, "all ranks hear the same"
    named = by_name(first)
    expected = {"ranks", "clocks", "shared", "locks", "disk speed", "room"}
    expected |= {"all-reduce", "point to point", "straggler", "torch", "attention"}
    assert expected <= set(named)
    assert not [f for f in first if f.verdict == "broken"]
    slow = named["straggler"]
    assert slow.verdict == "weak"
    assert re.search(r"slower: rank 1 on \S+ \(cpu\) \d+\.", slow.words), slow
    assert named["locks"] == good("locks", "flock keeps other processes out")
    assert not list(tmp_path.glob(".alia-ctx-*")), "nothing is left behind"


# -- without ranks -----------------------------------------------------------------------


def test_what_was_tested_is_what_is_pinned() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.MULTILINE))
    assert {name: pinned[name] for name in software.TESTED} == software.TESTED


@pytest.mark.parametrize(
    ("installed", "verdict"),
    [("2.13.0", "good"), ("2.13.0+cu130", "good"), ("2.14.0", "weak")],
)
def test_another_release_than_tested_is_weak(
    installed: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    assert software.version("torch", "2.13.0").verdict == verdict


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
gpfs_projects /gpfs/projects gpfs rw 0 0
tmpfs /gpfs/projects/ab\\040c tmpfs rw 0 0
server:/x /gpfs/projects2 nfs4 rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/home/a", "ext4"),
        ("/gpfs/projects/run", "gpfs"),
        ("/gpfs/projects", "gpfs"),
        ("/gpfs/projects/ab c/run", "tmpfs"),
        ("/gpfs/projects2/run", "nfs4"),
        ("/gpfs/projects3", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_longest_mount_point(
    place: str, kind: str
) -> None:
    assert disk.file_system(Path(place), MOUNTS)[0] == kind


def test_too_little_room_is_broken(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    gib = free.f_bavail * free.f_frsize / 2**30
    assert disk.room(tmp_path, gib / 2).verdict == "good"
    assert disk.room(tmp_path, gib * 2).verdict == "broken"


# Lines as `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` prints them.
WELL = (
    "NVIDIA H100 80GB HBM3, 550.54.15, 1980, 1980, 0x0000000000000000, Enabled, 0, 41"
)
IDLE = "NVIDIA H100 80GB HBM3, 550.54.15, 345, 1980, 0x0000000000000001, Enabled, 0, 28"


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        (WELL, {}),
        (IDLE, {}),
        (WELL.replace("Enabled, 0", "Enabled, 3"), {"gpu memory": "broken"}),
        (WELL.replace("Enabled, 0", "Disabled, [N/A]"), {"gpu memory": "weak"}),
        (WELL.replace("Enabled, 0", "[N/A], [N/A]"), {}),
        (WELL.replace("00000,", "00048,"), {"gpu clocks": "weak"}),
        (WELL[:-2] + "91", {"gpu heat": "weak"}),
        ("No devices were found", {"gpu": "weak"}),
    ],
)
def test_what_the_driver_says_of_a_gpu(line: str, bad: dict[str, str]) -> None:
    findings = list(read_health(line + "\n"))
    assert {f.name: f.verdict for f in findings if f.verdict != "good"} == bad


def test_what_all_ranks_have_alike_is_one_line() -> None:
    alike, other = good("torch", "2.13.0"), weak("torch", "2.12.0", "update")
    lines = merged([("rank 0", [alike]), ("rank 1", [other]), ("rank 2", [alike])])
    assert [str(line) for line in lines] == [
        "good   torch: 2.13.0 [rank 0, rank 2]",
        "weak   torch: 2.12.0; update [rank 1]",
    ]
    assert [
        line.where for line in merged([("rank 0", [alike]), ("rank 1", [alike])])
    ] == [""]
