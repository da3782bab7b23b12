"""How `doctor` hears of all ranks: those that are sick, those that do not come, and what one
line says of many.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from alia_ctx.cluster import attendance, disk, links
from alia_ctx.cluster.findings import Finding, good, merged
from alia_ctx.config.load import load_plan
from alia_ctx.train.rendezvous import Meeting
from alia_ctx.workflow import doctor
from tests.cluster.launched import commands
from tests.small_run import command, environment, write_run


class Heard:
    """Rank 0, or another, and what it hears of the others, gathering after gathering."""

    def __init__(self, *answers: Any, rank: int = 0, world_size: int = 3) -> None:
        self.rank, self.world_size, self.answers = rank, world_size, list(answers)

    def gather_objects(self, value: Any) -> list[Any]:
        answer = self.answers.pop(0)
        return [value] * self.world_size if answer is None else [value, *answer]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([("one", "kept out"), ("two", "kept out")], ""),
        ([("one", "kept out"), ("two", "let in")], "does not keep others out on two"),
        (
            [("one", "kept out"), ("two", "No such file or directory")],
            "tried on two (No",
        ),
        ([("two", "No locks available")] * 2, "tried on two (No locks available)"),
        ([("two", ""), ("three", "let in")], "on two (), and does not keep others out"),
    ],
)
def test_locks_are_good_only_where_all_others_were_refused(
    answers: list[tuple[str, str]], words: str, tmp_path: Path
) -> None:
    found = disk.locks(Heard(None, None, answers), tmp_path)
    assert found.verdict == ("weak" if words else "good") and words in found.words
    assert not list(tmp_path.iterdir())


def test_a_host_that_does_not_see_the_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_TRIES", 1)
    assert disk._tried(tmp_path / "none") == "No such file or directory"
    (tmp_path / "there").touch()
    assert disk._tried(tmp_path / "there") == "let in"


def test_of_clocks_the_host_that_is_off_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links.time, "time", lambda: 1000.0)
    monkeypatch.setattr(links.socket, "gethostname", lambda: "one")
    others = [("two", 1000.2), ("three", 640.0), ("three", 640.0), ("four", 1002.5)]
    found = links.clocks(Heard(None, others, world_size=5))
    assert found.verdict == "broken"
    assert found.words == (
        "362.500 s apart: three is 360.0 s behind one, four is 2.5 s ahead of one"
    )
    found = links.clocks(Heard(None, [("two", 1003.0)], world_size=2))
    assert found.verdict == "weak" and "two is 3.0 s ahead of one" in found.words
    assert links.clocks(Heard(None, others[:1], world_size=2)).verdict == "good"


def test_a_port_that_is_not_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        closed = other.getsockname()[1]
    for said, words in (
        (None, f"one does not reach two (127.0.0.1:{closed}: Connection refused)"),
        ("timed out", "two does not reach one (timed out)"),
    ):
        monkeypatch.setattr(links.socket, "gethostname", lambda: "one")
        heard = Heard([("two", "127.0.0.1", closed)], [("two", "one", said)])
        found = links.ports(heard)
        assert found.verdict == "weak" and words in found.words


def ranks_of(store: Any, world_size: int) -> list[Meeting]:
    return [Meeting(store, rank, world_size) for rank in range(world_size)]


def test_a_sick_rank_is_heard_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 wants a GPU where there is none."""
    path, here = write_run(tmp_path), threading.local()
    monkeypatch.setattr(doctor, "starting_ranks", lambda patience: here.ranks)
    told: list[list[Finding]] = [[], []]

    def examine(ranks: Meeting) -> list[Finding]:
        here.ranks, device = ranks, ("cpu", "cuda")[ranks.rank]
        run, _ = load_plan(path, [f"engine.device={device}"])
        return doctor.examine(run, tmp_path / "out", tell=told[ranks.rank].append)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(examine, ranks_of(dist.HashStore(), 2))
    assert first == second
    [broken] = [finding for finding in first if finding.verdict == "broken"]
    assert broken.name == "cuda" and broken.where.startswith("rank 1 on")
    assert any(f.words.startswith("not measured without rank 1") for f in first)
    assert {"locks", "clocks", "disk speed", "ports"} <= {found.name for found in first}
    assert told[0] == [] and [f.name for f in told[1]] == ["cuda"]


def test_ranks_that_do_not_come_are_named_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = Meeting(dist.HashStore(), 0, 4)
    monkeypatch.setattr(doctor, "starting_ranks", lambda patience: meeting)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[7-8]")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2(x2)")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    commands(tmp_path, scontrol="echo node7; echo node8")
    attendance._hosts_of_slurm.cache_clear()
    found = doctor.examine(None, tmp_path, wait_seconds=0.2)
    attendance._hosts_of_slurm.cache_clear()
    [broken] = [finding for finding in found if finding.verdict == "broken"]
    named = "rank 1 on node7, rank 2 on node8, rank 3 on node8"
    assert broken.name == "ranks" and broken.words.startswith(f"{named}: not there")
    assert "torch" in {finding.name for finding in found}


def test_where_nobody_listens_that_is_said_in_time(tmp_path: Path) -> None:
    start = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and never listens: nobody else can meanwhile
        port = str(silent.getsockname()[1])
        done = subprocess.run(
            command("doctor", "--wait", "1"),
            env={**environment(), **start, "MASTER_PORT": port},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    line = done.stderr
    assert "broken ranks: do not meet" in line and "within 1 s" in line


@pytest.mark.parametrize(
    ("text", "counts"), [("4(x2),3", [4, 4, 3]), ("1", [1]), ("2,1(x3)", [2, 1, 1, 1])]
)
def test_tasks_of_nodes_are_read_as_slurm_writes_them(
    text: str, counts: list[int]
) -> None:
    assert attendance.tasks_of_nodes(text) == counts


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (["1980 of 1980 MHz", "1,755 of 1980 MHz"], "1,755 to 1980 of 1980 MHz"),
        (["2.13.0", "2.9.1"], "2.9.1 to 2.13.0"),
        (["0.5 GB/s", "0.25 GB/s", "10 GB/s"], "0.25 to 10 GB/s"),
        (["ECC on", "ECC off"], "ECC on, ECC off"),
        (["alike"] * 9, "alike"),
    ],
)
def test_what_is_good_everywhere_is_a_line_with_its_range(
    said: list[str], line: str
) -> None:
    ranks = [(f"rank {n}", [good("x", words)]) for n, words in enumerate(said)]
    assert [str(found) for found in merged(ranks)] == [f"good   x: {line}"]
