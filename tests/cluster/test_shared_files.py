"""A shared file system with many ranks: what a rank opens, lists and looks at when a stage
starts, saves and resumes does not grow with the number of ranks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.errors import AliaError
from alia_ctx.train.stopping import RequeueError
from tests.distributed import run_distributed
from tests.small_run import state_checksums, write_run
from tests.train.runs import StopAfter, last

_CALLS = ("open", "os.scandir", "os.listdir", "os.mkdir", "os.rename", "os.remove")


class Counting:
    """Calls of a process to files below a folder, by kind."""

    def __init__(self, folder: str) -> None:
        self.folder, self.calls = folder, Counter[str]()
        sys.addaudithook(self._audit)
        for name in ("stat", "lstat"):
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CALLS and arguments and self._below(arguments[0]):
            self.calls[event] += 1

    def _counted(self, name: str, function: Any) -> Any:
        def counted(path: Any, *arguments: Any, **options: Any) -> Any:
            if self._below(path):
                self.calls[name] += 1
            return function(path, *arguments, **options)

        return counted

    def _below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(
            self.folder
        )

    def take(self) -> dict[str, int]:
        calls, self.calls = dict(self.calls), Counter()
        return calls


def start_and_resume(rank: int, path: str, ranks: int) -> list[dict[str, int]]:
    """Calls of a rank until it has begun a stage and saved twice, and until a second start
    has resumed and ended it.
    """
    counting, found = Counting(str(Path(path).parent)), []
    StopAfter(4)(rank)
    for _ in range(2):
        run = load_run(path, [f"cluster.ranks_per_node={ranks}"])
        with contextlib.suppress(RequeueError):
            workflow.train(run, "short")
        found.append(counting.take())
    return found


SAVES = (2, 3)  # of the first start, and of the second


@pytest.mark.cluster
def test_what_a_rank_asks_of_the_file_system_does_not_grow_with_the_ranks(
    tmp_path: Path,
) -> None:
    most: dict[int, list[tuple[int, int]]] = {}
    for ranks in (2, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        path = write_run(folder)
        workflow.pack(load_run(path), "short")
        calls = run_distributed(start_and_resume, ranks, str(path), ranks)
        totals = [[sum(phase.values()) for phase in rank] for rank in calls]
        most[ranks] = [
            (totals[0][phase], max(total[phase] for total in totals[1:]))
            for phase in range(2)
        ]
    for saves, (first, other), (first_of_4, other_of_4) in zip(
        SAVES, most[2], most[4], strict=True
    ):
        assert 0 < other < first
        assert other_of_4 <= other, most
        # The first flushes and weighs each rank's file, once a save, before it commits.
        assert first_of_4 <= first + 2 * (4 - 2) * (saves + 1), most


def trained(rank: int, path: str, overrides: list[str]) -> str:
    """What stopped the stage, if anything."""
    try:
        workflow.train(load_run(path, overrides), "short")
    except AliaError as error:
        return str(error)
    return ""


@pytest.mark.cluster
def test_text_is_copied_to_the_hosts_own_disk_once_and_changes_nothing(
    tmp_path: Path,
) -> None:
    path = write_run(tmp_path)
    workflow.pack(load_run(path), "short")
    own = tmp_path / "own"
    overrides = [f"data.stage_to={own}/$USER_OF_NOBODY", "metrics.sinks=[]"]
    said, _ = run_distributed(trained, 2, str(path), overrides)
    assert "a variable is not set on" in said and "rank 0 on" in said
    assert not (tmp_path / "out/stages/short/checkpoints").exists()
    overrides[0] = f"data.stage_to={own}"
    done = run_distributed(trained, 2, str(path), overrides)
    [folder] = own.iterdir()
    assert done == ["", ""]
    copied = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert copied["text.bin"] == (tmp_path / "text.bin").read_bytes()
    assert not [name for name in copied if name.endswith(".tmp")]
    # A second start takes the copy that is there, and what is spoiled is made again.
    before = (folder / "text.bin").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out/stages")
    run_distributed(trained, 2, str(path), overrides)
    assert (folder / "text.bin").stat().st_mtime_ns == before
    state = state_checksums(last(tmp_path))
    shutil.rmtree(tmp_path / "out/stages")
    (folder / "text.bin").write_bytes(b"0")
    run_distributed(trained, 2, str(path), overrides)
    assert (folder / "text.bin").read_bytes() == copied["text.bin"]
    assert state_checksums(last(tmp_path)) == state
    shutil.rmtree(tmp_path / "out/stages")
    run_distributed(trained, 2, str(path), overrides[1:])
    assert state_checksums(last(tmp_path)) == state, "and from the shared disk the same"
