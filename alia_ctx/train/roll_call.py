"""What becomes of ranks that lose touch with each other: a clean end with status 75, and the
names of those that do not answer any more.

A rank dies, hangs, or its network goes: the others notice in the midst of a collective,
at once (gloo, where the connection is closed) or after `engine.timeout_minutes`. Each
leaves word in the store that they met at, ends its connections, so that those that
wait for it notice too, and looks whose word is missing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from alia_ctx.progress import say
from alia_ctx.train.faults import RankName, fault, record_fault
from alia_ctx.train.stopping import (
    LEAVING_SECONDS,
    REQUEUE,
    RequeueError,
    leave_within,
    record_status,
)

# gloo has no class of errors of its own (third_party/gloo/gloo/transport/tcp/pair.cc and
# unbound_buffer.cc of torch): a RuntimeError with one of these in it.
_OF_GLOO = (
    *("gloo/transport", "Connection closed by peer", "Connection reset by peer"),
    *("Timed out waiting", "Application timeout caused pair closure", "Broken pipe"),
    *("Socket closed", "Connection refused"),
)
_KEY = "alia-ctx/lost"
_QUIET_SECONDS = 5.0  # without a further word; connections close one after another
_CALL_SECONDS = 20.0  # for all of the call


class LostTouchError(RequeueError):
    """The ranks cannot work together any more; what is saved is whole, start again."""


def lost_touch(error: BaseException) -> bool:
    """Whether an error says that other ranks cannot be reached."""
    if isinstance(error, dist.DistError):  # NCCL, the store, the network
        return True
    is_plain = isinstance(error, RuntimeError) and type(error) is RuntimeError
    return is_plain and any(words in str(error) for words in _OF_GLOO)


class RollCall(AbstractContextManager["RollCall"]):
    """Around what ranks do together. An error of lost touch inside becomes a
    LostTouchError that names the ranks that are silent, and they are recorded.

    Args:
        rank: of this process.
        directory: where faults are recorded; see `alia_ctx.train.faults`.
        update: gives the updates that are done.
        work: what was being done, as it is said.
    """

    def __init__(
        self,
        rank: int,
        directory: Path,
        update: Callable[[], int] = lambda: 0,
        work: str = "train",
    ) -> None:
        self.rank, self.directory = rank, directory
        self.update, self.work = update, work
        self.names: Sequence[RankName] = ()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or not lost_touch(error) or not dist.is_initialized():
            return
        # Whatever hangs from here on, a file system or a driver: this process ends.
        leave_within(LEAVING_SECONDS, REQUEUE)
        record_status(REQUEUE)
        words = " ".join(str(error).split())[:200]
        raise LostTouchError(self._message(words, self._call())) from error

    def _call(self) -> list[int] | None:
        """The ranks that leave no word; None where the store, which is on the host of rank 0
        or of its launcher, does not answer.
        """
        world, found = dist.get_world_size(), list[list[int]]()
        store: Any = dist.distributed_c10d._get_default_store()

        def call() -> None:
            with suppress(RuntimeError, ValueError):
                found.append(_silent(store, self.rank, world))

        calling = threading.Thread(target=call, daemon=True)
        # Its word first: connections may take seconds to end, and the others do not wait.
        calling.start()
        _end_connections()
        calling.join(_CALL_SECONDS + 2)
        return found[0] if found else None

    def _message(self, words: str, silent: list[int] | None) -> str:
        update = self.update()
        head = f"lost touch with other ranks after update {update} ({words})"
        tail = f"what is saved is whole; start again to go on ({self.work})"
        if silent is None:
            host = f" on {self.names[0].host}" if self.names else ""
            return f"{head}; nobody answers at the store of rank 0{host}; {tail}"
        if not silent:
            hosts = ", ".join(sorted({name.host for name in self.names}))
            return f"{head}; all ranks still answer: look at the network of {hosts}; {tail}"
        names = [self._name(rank) for rank in silent]
        spoke = (rank for rank in range(len(self.names)) if rank not in silent)
        if self.rank == next(spoke, self.rank):  # one of them records it
            for name in names:
                line = fault("lost", name, update, f"{name} does not answer ({words})")
                record_fault(self.directory, self.rank, line)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        listed = ", ".join(map(str, names[:8]))
        return f"{head}; no answer from {listed}{more}; {tail}"

    def _name(self, rank: int) -> RankName:
        if rank < len(self.names):
            return self.names[rank]
        return RankName(rank, "a host that it has not named", "no GPU named")


def _silent(store: Any, rank: int, world: int) -> list[int]:
    """The ranks that leave no word. The first to come here calls, once no further word
    comes; what it finds all read, so that a store of 800 ranks is not asked by each for
    each. Rank 0 may host the store: like all it stays until that is known.
    """
    store.set(f"{_KEY}/{rank}", "")
    said = f"{_KEY}/said"
    if store.add(f"{_KEY}/count", 1) == 1:
        there, last = 0, time.monotonic()
        while there < world and time.monotonic() - last < _QUIET_SECONDS:
            if (now := store.add(f"{_KEY}/count", 0)) != there:
                there, last = now, time.monotonic()
            time.sleep(0.2)
        silent = [r for r in range(world) if not store.check([f"{_KEY}/{r}"])]
        store.set(said, json.dumps(silent))
        time.sleep(1.0)  # the others read it
        return silent
    deadline = time.monotonic() + _CALL_SECONDS
    while not store.check([said]):
        if time.monotonic() > deadline:
            raise ValueError("nobody has called")
        time.sleep(0.2)
    if rank == 0:
        time.sleep(2.0)
    return list(json.loads(store.get(said)))


def _end_connections() -> None:
    """Have those that wait for this rank notice that it has gone."""

    def end() -> None:
        with suppress(Exception):  # it may be broken in any way
            dist.destroy_process_group()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(5.0)
    if ending.is_alive():
        say("the connections to the other ranks do not close; going on without")
