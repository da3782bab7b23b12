"""Who is there, over a store, with a thread for each rank."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from alia_ctx.train import presence
from alia_ctx.train.presence import Presence, Verdict


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(presence, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(presence, "_QUIET_SECONDS", 2.0)
    monkeypatch.setattr(presence, "_STAYS_SECONDS", 0.3)
    monkeypatch.setattr(presence, "_IDLE_SECONDS", 1.0)
    yield


class Team:
    """Ranks as threads: each does something, and calls afterwards unless it is gone."""

    def __init__(self, *work: Callable[[], None] | None) -> None:
        self.store = dist.HashStore()
        self.verdicts: dict[int, Verdict | None] = {}
        self.there = threading.Barrier(sum(w is not None for w in work))
        self.threads = [
            threading.Thread(target=self._rank, args=(rank, len(work), w))
            for rank, w in enumerate(work)
            if w is not None
        ]

    def _rank(self, rank: int, world: int, work: Callable[[], None]) -> None:
        present = Presence(self.store, rank, world, "lost")
        present.start()
        self.there.wait()
        work()
        self.verdicts[rank] = present.call()

    def run(self) -> dict[int, Verdict | None]:
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        return self.verdicts


def notices() -> None:
    """Loses touch at once."""


def computes() -> None:
    end = time.monotonic() + 3
    while time.monotonic() < end:
        sum(range(1000))


def stands_still() -> None:
    time.sleep(4)


@pytest.mark.parametrize(
    ("work", "silent", "computing"),
    [
        ([notices, None, notices], [1], []),
        ([notices, None, computes], [1], [2]),
        ([notices, None, stands_still], [1], [2]),  # as one that waits for its GPU
        ([notices, notices, notices], [], []),
        ([notices, computes, notices], [], [1]),
    ],
    ids=lambda value: "-".join(getattr(w, "__name__", str(w)) for w in value),
)
def test_the_dead_are_silent_and_those_that_compute_are_not(
    work: list[Callable[[], None] | None], silent: list[int], computing: list[int]
) -> None:
    verdicts = Team(*work).run()
    for verdict in verdicts.values():
        assert verdict is not None
        assert (verdict.silent, verdict.computing) == (silent, computing)


def test_where_all_are_there_it_is_the_one_that_stands_still() -> None:
    def late() -> None:
        time.sleep(1.5)

    verdicts = Team(late, late, lambda: time.sleep(6)).run()
    assert {tuple(v.silent) for v in verdicts.values() if v} == {(2,)}


def test_who_has_left_well_is_not_lost() -> None:
    store = dist.HashStore()
    gone = Presence(store, 1, 2, "lost")
    gone.start()
    gone.end(well=True)
    failed = Presence(store, 1, 2, "other")
    failed.start()
    failed.end(well=False)
    for key, silent in (("lost", []), ("other", [1])):
        there = Presence(store, 0, 2, key)
        there.start()
        verdict = there.call()
        assert verdict == Verdict(0, silent, [])
        assert json.loads(store.get(f"{key}/said"))["silent"] == silent
