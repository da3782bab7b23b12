"""What befalls one rank of several: it is named, with host and GPU, and survived."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from alia_ctx import workflow
from alia_ctx.cli import main
from alia_ctx.config.load import load_run
from alia_ctx.train.faults import read_faults
from alia_ctx.train.stopping import REQUEUE
from tests import distributed
from tests.small_run import metrics, write_run
from tests.train.runs import numbers, start

HERE = f"on {socket.gethostname()} (cpu)"


def faults(folder: Path, *, slow: bool = False) -> list[tuple[str, int, str]]:
    """The faults that are recorded. Who else is slow is decided by whatever the machine is
    busy with: without `slow`, those are left out.
    """
    lines = read_faults(folder / "out/stages/short")
    named = [(line["kind"], line["rank"], line["host"]) for line in lines]
    return [fault for fault in named if slow or fault[0] != "slow"]


class OneRank:
    """Something that befalls `rank` in each update from the nth on."""

    def __init__(self, rank: int, first: int = 1) -> None:
        self.rank, self.first = rank, first

    def __call__(self, rank: int) -> None:
        from alia_ctx.mcore.engine import MegatronEngine

        original, calls = MegatronEngine.accumulate_gradients, [0]

        def accumulate_gradients(engine: Any, rows: Any) -> Any:
            calls[0] += 1
            if rank != self.rank or calls[0] < self.first:
                return original(engine, rows)
            return self.befall(engine, rows, original)

        MegatronEngine.accumulate_gradients = accumulate_gradients  # type: ignore[method-assign]

    def befall(self, engine: Any, rows: Any, original: Any) -> Any:
        raise NotImplementedError


class Slow(OneRank):
    """Its forward passes take five times as long, and half a second more at least: what
    keeps the machine busy keeps it from both ranks.
    """

    took = 0.0  # seconds of its last pass

    def befall(self, engine: Any, rows: Any, original: Any) -> Any:
        forward, passes = engine.passes.rows, engine.passes

        def rows_slowly(*arguments: Any, **options: Any) -> Any:
            # Before the pass, at whose end the ranks wait for each other.
            time.sleep(max(0.5, 4 * self.took))
            began = time.monotonic()
            losses = forward(*arguments, **options)
            self.took = time.monotonic() - began
            return losses

        passes.rows = rows_slowly
        try:
            return original(engine, rows)
        finally:
            passes.rows = forward


class NotANumber(OneRank):
    """Its losses are NaN."""

    def befall(self, engine: Any, rows: Any, original: Any) -> Any:
        losses = original(engine, rows)
        for row in losses:
            row.values[:] = math.nan
        return losses


class Dies(OneRank):
    """It is killed, without a word."""

    def befall(self, engine: Any, rows: Any, original: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Computes(OneRank):
    """It computes for long, in one pass; another rank dies meanwhile, at once."""

    def __init__(self, rank: int, first: int, dies: int, sleeps: bool) -> None:
        super().__init__(rank, first)
        self.dies, self.sleeps = dies, sleeps

    def __call__(self, rank: int) -> None:
        if rank == self.dies:
            Dies(rank, self.first)(rank)
        super().__call__(rank)

    def befall(self, engine: Any, rows: Any, original: Any) -> Any:
        end = time.monotonic() + 14
        while time.monotonic() < end:
            if self.sleeps:  # as one that waits for its GPU
                time.sleep(14)
        return original(engine, rows)


class Hangs(OneRank):
    """It stands still; the others wait for it."""

    def befall(self, engine: Any, rows: Any, original: Any) -> Any:
        time.sleep(600)


def test_a_slow_rank_is_named(tmp_path: Path, uninterrupted: Path) -> None:
    path = write_run(tmp_path)
    assert start(path, ranks=2, sabotage=Slow(1, first=2)) == ""
    # On a busy machine the other may be slow for a while too, before or after.
    named = faults(tmp_path, slow=True)
    assert ("slow", 1, socket.gethostname()) in named
    assert {kind for kind, _, _ in named} == {"slow"}
    slow = [line.get("slow_ranks", {}) for line in metrics(tmp_path)]
    assert sum("1" in ranks for ranks in slow[4:]) >= len(slow[4:]) / 2
    assert numbers(tmp_path) == numbers(uninterrupted), "and nothing else changes"
    [status, _] = workflow.run_status(tmp_path / "out").stages
    assert status.faults == {"slow rank": len(named)}
    assert any(f"rank 1 {HERE} takes" in words for words in status.words)


def test_a_rank_without_finite_losses_is_named_and_suspected(tmp_path: Path) -> None:
    message = start(write_run(tmp_path), ranks=2, sabotage=NotANumber(1, first=4))
    assert "DivergedError" in message
    assert f"Each time the losses of rank 1 {HERE} were not finite" in message
    assert faults(tmp_path) == [("nan", 1, socket.gethostname())] * 3
    assert [n.get("ranks_not_finite") for n in metrics(tmp_path)[2:]] == [
        None,
        [1],
        [1],
        [1],
    ]


# -- ranks that are lost ---------------------------------------------------------------


def started(rank: int, path: str, sabotage: Any, words: str, port: str) -> None:
    """`alia-ctx train` on this rank, as srun would have started it: its words and its
    status stay behind.
    """
    os.dup2(os.open(f"{words}-{rank}.err", os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.destroy_process_group()  # it meets the others by itself, as srun's ranks do
    sabotage(rank)
    sys.argv = ["alia-ctx", "train", path, "--stage", "short", "metrics.sinks=[]"]
    sys.argv += ["cluster.ranks_per_node=3", "stages.short.update_tokens=384"]
    sys.argv += ["engine.timeout_minutes=0.25", "engine.hang_minutes=0.7"]
    status = 1
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def end_of(folder: Path, sabotage: Any) -> tuple[list[str], list[int | None]]:
    """(what each of three ranks said, the status with which it ended)."""
    path = write_run(folder, update_tokens=384)
    workflow.pack(load_run(path, ["cluster.ranks_per_node=3"]), "short")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    context = distributed.forkserver()
    queue, words = context.SimpleQueue(), folder / "said"
    arguments = (str(path), sabotage, str(words), str(port))
    shared = (3, str(folder), 150, arguments, queue)
    ranks = [
        context.Process(target=distributed._child, args=(started, rank, *shared))
        for rank in range(3)
    ]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(150)
    finally:
        for rank in ranks:
            distributed.kill(rank)
    said = [Path(f"{words}-{rank}.err").read_text() for rank in range(3)]
    return said, [rank.exitcode for rank in ranks]


@pytest.mark.cluster
def test_a_rank_that_dies_is_named_by_the_others_which_ask_to_be_started_again(
    tmp_path: Path,
) -> None:
    said, statuses = end_of(tmp_path, Dies(1, first=5))
    assert statuses == [REQUEUE, -signal.SIGKILL, REQUEUE], said
    for words in (said[0], said[2]):
        assert "lost touch with other ranks after update 4" in words
        assert f"no answer from rank 1 {HERE}" in words
        assert "Traceback" not in words
    assert faults(tmp_path) == [("lost", 1, socket.gethostname())]


@pytest.mark.cluster
def test_a_rank_that_hangs_is_named_by_the_others_and_by_itself(tmp_path: Path) -> None:
    said, statuses = end_of(tmp_path, Hangs(2, first=5))
    assert statuses == [REQUEUE] * 3, said
    assert (
        f"no answer from rank 2 {HERE}" in said[0]
        and "no answer from rank 2" in said[1]
    )
    assert (
        f"rank 2 {HERE}: no progress for 42 s, not waiting for others, in befall"
        in said[2]
    )
    assert sorted(faults(tmp_path)) == [
        ("hung", 2, socket.gethostname()),
        ("lost", 2, socket.gethostname()),
    ]
    assert (tmp_path / "out/stages/short/hang-rank-2.txt").is_file()


@pytest.mark.cluster
@pytest.mark.parametrize(("computes", "sleeps"), [(2, True), (0, False)])
def test_a_rank_that_computes_for_long_is_not_lost_and_names_the_dead_one(
    tmp_path: Path, computes: int, sleeps: bool
) -> None:
    """Longer than the others wait for an answer; also the host of the store."""
    said, statuses = end_of(tmp_path, Computes(computes, 5, dies=1, sleeps=sleeps))
    assert statuses == [REQUEUE, -signal.SIGKILL, REQUEUE], said
    for words in (said[0], said[2]):
        assert f"no answer from rank 1 {HERE};" in words
        assert "no answer from rank 0" not in words
        assert "no answer from rank 2" not in words
    assert faults(tmp_path) == [("lost", 1, socket.gethostname())]
