"""Where the ranks of a run meet, and what they tell each other before an engine is there;
a port that is taken is one line and status 75.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from alia_ctx.checkpoint.opening import OneRank, Ranks
from alia_ctx.errors import AliaError
from alia_ctx.rank_variables import OF_A_MEETING, rank_problem
from alia_ctx.train.stopping import RequeueError

_MEETING = timedelta(minutes=20)  # as `engine.timeout_minutes`, not known yet
_READING = timedelta(seconds=60)


class World:
    """All ranks of the process group, before any layout divides them."""

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        return dist.get_world_size()

    def gather_objects(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank; for small things. Collective."""
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered


class Meeting:
    """The ranks that launcher or srun started, before there is a process group, which
    takes a configuration to start: they meet at the store of MASTER_ADDR and MASTER_PORT.
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, patience: timedelta = _MEETING
    ) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.patience = patience
        self._gathered = 0

    def gather_objects(self, value: Any) -> list[Any]:
        """`value`, of JSON's types, of every rank, on every rank. Collective."""
        keys = self._keys()
        with rendezvous():
            self.store.set(keys[self.rank], json.dumps(value))
            self._wait(keys, self.patience)
        return [*self._read(dict(enumerate(keys))).values()]

    def gather_present(self, value: Any, seconds: float) -> dict[int, Any]:
        """`value` of the ranks that have given theirs within so many seconds, by rank.
        What is gathered after some have not come waits for them.
        """
        keys = self._keys()
        with rendezvous():
            self.store.set(keys[self.rank], json.dumps(value))
            with suppress(dist.DistStoreError):
                self._wait(keys, timedelta(seconds=seconds))
            there = {r: key for r, key in enumerate(keys) if self.store.check([key])}
        return self._read(there)

    def _keys(self) -> list[str]:
        self._gathered += 1
        return [f"alia-ctx/{self._gathered}/{r}" for r in range(self.world_size)]

    def _read(self, keys: dict[int, str]) -> dict[int, Any]:
        with rendezvous():
            texts = self.store.multi_get([*keys.values()])
            self.store.set(f"{keys[self.rank]}/read", "")
        if self.rank == 0:  # may host the store: it stays until all have read
            with suppress(dist.DistError):
                self._wait([f"{key}/read" for key in keys.values()], _READING)
        return dict(zip(keys, map(json.loads, texts), strict=True))

    def _wait(self, keys: list[str], limit: timedelta) -> None:
        """Until all keys are there. Upstream's `wait` keeps signals waiting too."""
        deadline = time.monotonic() + limit.total_seconds()
        while not self.store.check(keys):
            if time.monotonic() > deadline:
                missing = [key for key in keys if not self.store.check([key])]
                ranks = ", ".join(key.split("/")[2] for key in missing)
                raise dist.DistStoreError(f"nothing was heard of ranks {ranks}")
            time.sleep(0.05)


def starting_ranks(patience: timedelta = _MEETING) -> Ranks:
    """The ranks that this process was started as one of. `patience`: with those that do
    not come, where they meet now.

    Raises RequeueError where they cannot meet.
    """
    if dist.is_available() and dist.is_initialized():
        return World()
    return meeting(patience) if "RANK" in os.environ else OneRank()


_met: list[Meeting] = []


def meeting(patience: timedelta = _MEETING) -> Meeting:
    """Where the ranks meet; the process group is made from its store later on."""
    if not _met:  # one rank listens on the port, once
        _met.append(_meet(patience))
    return _met[0]


def _meet(patience: timedelta) -> Meeting:
    if problem := rank_problem(OF_A_MEETING, needed="RANK"):
        raise AliaError(
            f"{problem}: start several ranks with `python -m alia_ctx.cli.launch` or srun, "
            "or unset RANK"
        )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not _hosts_the_store():
        _await_listener(patience)
    with rendezvous(free=True):
        # As torch's `env://` does, but that rank 0 does not wait in there for the others,
        # whom it could not name.
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            world_size,
            _hosts_the_store(),
            timeout=patience,
            wait_for_workers=False,
            multi_tenant=True,
        )
    return Meeting(store, rank, world_size, patience)


@contextmanager
def rendezvous(*, free: bool = False) -> Iterator[None]:
    """Around what ranks do where MASTER_ADDR and MASTER_PORT tell them to meet; `free`:
    the port must be, as it will be listened on.

    Raises RequeueError where the ranks cannot meet there: another start, on another
    port or when the port is free again, may do, and nothing has been done yet.
    """
    address, port = (
        os.environ.get("MASTER_ADDR", "?"),
        os.environ.get("MASTER_PORT", "?"),
    )
    if free and _hosts_the_store() and port.isdigit() and _is_taken(int(port)):
        raise RequeueError(
            f"port {port} of {address}, where the ranks are to meet, is taken by another "
            "program; start again, or set another MASTER_PORT"
        )
    try:
        yield
    except dist.DistError as error:
        reason = str(error).strip().splitlines()[0]
        raise RequeueError(
            f"the ranks cannot meet at {address}:{port}: {reason}; start again, or set "
            "another MASTER_PORT"
        ) from error


def _await_listener(patience: timedelta) -> None:
    """Until somebody listens where the ranks meet. Upstream's own waiting comes with the
    C++ stack of every attempt that has failed.

    Raises RequeueError where nobody does.
    """
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        try:
            socket.create_connection(place, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RequeueError(
                    f"the ranks cannot meet at {place[0]}:{place[1]}: rank 0 does not "
                    f"answer there within {patience.total_seconds():g} s "
                    f"({error.strerror or error}); start again, or set another "
                    "MASTER_PORT"
                ) from error
        time.sleep(0.2)


def _hosts_the_store() -> bool:
    """Rank 0 listens on the port, but under torchrun, whose agent does already."""
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return os.environ.get("RANK") == "0" and not by_agent


def _is_taken(port: int) -> bool:
    """Asked here first, as torch's own failure to listen comes with the C++ log of every
    address that it tried (torch/csrc/distributed/c10d/socket.cpp), some fifty lines.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
