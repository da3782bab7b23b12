"""What becomes of ranks that lose touch with each other: a clean end with status 75, and the
names of those that do not answer any more.

A rank dies, hangs, or its network goes: the others notice in the midst of a collective,
at once (gloo, where the connection is closed) or after `engine.timeout_minutes`. Each
leaves word in the store that they met at, ends its connections, so that those that
wait for it notice too, and looks who does not answer (`alia_ctx.train.presence`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from alia_ctx.progress import say
from alia_ctx.train.faults import RankName, fault, record_fault
from alia_ctx.train.presence import Presence, Verdict
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
# Of one process: ranks do what they do together in the same order.
_numbers = itertools.count()


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
        self._presence: Presence | None = None

    def __enter__(self) -> RollCall:
        if dist.is_initialized() and dist.get_world_size() > 1:
            store: Any = dist.distributed_c10d._get_default_store()
            world, key = dist.get_world_size(), f"alia-ctx/lost/{next(_numbers)}"
            self._presence = Presence(store, dist.get_rank(), world, key)
            self._presence.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        presence = self._presence
        lost = error is not None and lost_touch(error) and dist.is_initialized()
        if not lost or presence is None:
            if presence is not None:
                presence.end(well=error is None)
            return
        # Whatever hangs from here on, a file system or a driver: this process ends.
        leave_within(LEAVING_SECONDS, REQUEUE)
        record_status(REQUEUE)
        words = " ".join(str(error).split())[:200]
        # Its word first: connections may take seconds to end, and the others do not wait.
        ending = threading.Timer(0.2, _end_connections)
        ending.start()
        verdict = presence.call()
        ending.join()
        raise LostTouchError(self._message(words, verdict)) from error

    def _message(self, words: str, verdict: Verdict | None) -> str:
        update = self.update()
        head = f"lost touch with other ranks after update {update} ({words})"
        tail = f"what is saved is whole; start again to go on ({self.work})"
        if verdict is None:
            host = f" on {self.names[0].host}" if self.names else ""
            return (
                f"{head}; nobody answers at the store of rank 0{host}: it has ended, or "
                f"the network between it and this host is cut; {tail}"
            )
        if self.rank in verdict.silent:
            return f"{head}; the others did not hear of this rank, and end; {tail}"
        names = [self._name(rank) for rank in verdict.silent]
        if self.rank == verdict.by:
            for name in names:
                line = fault("lost", name, update, f"{name} does not answer ({words})")
                record_fault(self.directory, self.rank, line)
        if names:
            return (
                f"{head}; no answer from {_listed(names)}; they have ended, or the "
                f"network between them and the store of rank 0 is cut; {tail}"
            )
        if others := [r for r in verdict.computing if r != self.rank]:
            listed = _listed([self._name(rank) for rank in others])
            return (
                f"{head}; all ranks still answer, and others waited for {listed}, still "
                f"computing: give more time with engine.timeout_minutes; {tail}"
            )
        hosts = ", ".join(sorted({name.host for name in self.names}))
        return f"{head}; all ranks still answer: look at the network of {hosts}; {tail}"

    def _name(self, rank: int) -> RankName:
        if rank < len(self.names):
            return self.names[rank]
        return RankName(rank, "a host that it has not named", "no GPU named")


def _listed(names: Sequence[RankName]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(str, names[:8])) + more


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
