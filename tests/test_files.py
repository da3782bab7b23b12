"""One writer a directory: who holds it is named, and nobody dead holds anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml

from alia_ctx.errors import AliaError
from alia_ctx.files import BusyError, exclusive
from tests.distributed import run_distributed
from tests.small_run import alia, command, environment, write_run

HOLD = """
import sys, time
from pathlib import Path
from alia_ctx.files import exclusive

with exclusive(Path(sys.argv[1]), "the holder's work"):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that holds a directory until it is let go or killed."""

    def __init__(self, directory: Path, job: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(directory)],
            env={**environment(), **({"SLURM_JOB_ID": job} if job else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_the_second_writer_is_told_who_holds_it_in_one_line(tmp_path: Path) -> None:
    directory = tmp_path / "plan"
    with (
        Holder(directory, "4711") as holder,
        pytest.raises(BusyError) as refusal,
        exclusive(directory, "mine"),
    ):
        pass
    said = str(refusal.value)
    for part in (
        str(directory),
        "`the holder's work`",
        f"pid {holder.process.pid} on {os.uname().nodename}, job 4711, since 20",
    ):
        assert part in said
    assert "\n" not in said


def test_a_killed_holder_is_no_obstacle(tmp_path: Path) -> None:
    with Holder(tmp_path / "plan"):
        pass
    assert (tmp_path / ".plan.lock").exists()
    with exclusive(tmp_path / "plan", "mine"):
        pass


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "a/plan", "mine"):
            assert os.listdir(tmp_path / "a") == [".plan.lock"]
    assert os.listdir(tmp_path / "a") == []


def test_a_link_and_what_it_leads_to_are_one_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        Holder(tmp_path / "real"),
        pytest.raises(BusyError, match="holder's work"),
        exclusive(tmp_path / "link", "mine"),
    ):
        pass


def test_different_directories_do_not_meet(tmp_path: Path) -> None:
    with Holder(tmp_path / "a"), exclusive(tmp_path / "b", "mine"):
        pass


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(AliaError, match=r"\.plan\.lock: cannot be locked"),
        exclusive(tmp_path / "file/plan", "mine"),
    ):
        pass


def hold_together(rank: int, directory: str) -> str:
    def gather(error: str | None) -> list[str | None]:
        errors: list[str | None] = [None, None]
        dist.all_gather_object(errors, error)
        return errors

    try:
        with exclusive(Path(directory), "ours", rank=rank, gather=gather):
            return "held"
    except BusyError as error:
        return str(error)


def test_all_ranks_learn_of_the_first_ones_refusal(tmp_path: Path) -> None:
    assert run_distributed(hold_together, 2, str(tmp_path / "s")) == ["held", "held"]
    with Holder(tmp_path / "s"):
        said = run_distributed(hold_together, 2, str(tmp_path / "s"))
    assert said[0] == said[1] and "holder's work" in said[0]


@pytest.mark.parametrize("what", ["pack", "tokenize", "train"])
def test_a_command_refuses_what_another_writes(what: str, tmp_path: Path) -> None:
    path = write_run(tmp_path)
    arguments = ["--stage", "short"]
    if what == "tokenize":
        config = yaml.safe_load(path.read_text())
        (tmp_path / "a.txt").write_text("x")
        config["data"]["sources"] = {"text": {"inputs": [str(tmp_path / "a.txt")]}}
        path.write_text(yaml.safe_dump(config))
        arguments = ["--source", "text"]
    elif what == "train":
        assert alia("pack", str(path), "--stage", "short").returncode == 0
    place = {"pack": "plans/short", "tokenize": "tokens/text", "train": "stages/short"}
    with Holder(tmp_path / "out" / place[what]):
        done = alia(what, str(path), *arguments)
    assert done.returncode == 2, done.stderr
    # Below what it says that it does.
    *doing, said = done.stderr.splitlines()
    assert "holder's work" in said and len(doing) <= 3, done.stderr
    assert not (tmp_path / "out" / place[what]).exists(), "nothing was written"


def test_two_packs_at_once(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    both = [
        subprocess.Popen(
            command("pack", str(path), "--stage", "short", "--overwrite"),
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ends = [(p.communicate(timeout=170)[1], p.returncode) for p in both]
    assert 0 in [code for _, code in ends]
    for errors, code in ends:
        assert "Traceback" not in errors
        assert code == 0 or (code == 2 and len(errors.splitlines()) == 1), errors


def test_a_plan_behind_a_link_is_made_where_the_link_leads(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    (tmp_path / "out/plans").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "out/plans/short"
    link.symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        done = alia("pack", str(path), "--stage", "short", "--overwrite")
        assert done.returncode == 0, done.stderr
    assert link.is_symlink() and (tmp_path / "elsewhere/plan.json").is_file()
