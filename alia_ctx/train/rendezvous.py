"""Where the ranks of a run meet: a port that is taken is one line and status 75."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from alia_ctx.train.stopping import RequeueError


@contextmanager
def rendezvous() -> Iterator[None]:
    """Around the start of a process group whose place MASTER_ADDR and MASTER_PORT give.

    Raises RequeueError where the ranks cannot meet there: another start, on another
    port or when the port is free again, may do, and nothing has been done yet.
    """
    address, port = (
        os.environ.get("MASTER_ADDR", "?"),
        os.environ.get("MASTER_PORT", "?"),
    )
    if _hosts_the_store() and port.isdigit() and _is_taken(int(port)):
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
