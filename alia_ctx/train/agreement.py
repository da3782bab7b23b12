"""What every rank has to see alike before work begins: files that each of them opens,
packages that each of them computes with.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from alia_ctx.checkpoint.opening import Ranks
from alia_ctx.errors import AliaError

_SEE_TO_FILES = "see to that file system and start again"


class RanksDifferError(AliaError):
    """A rank sees other files or packages than the others do, or cannot read them."""


def on_all_ranks[T](
    ranks: Ranks,
    what: str,
    look: Callable[[], T],
    identity: Callable[[T], Any] = lambda value: None,
    remedy: str = _SEE_TO_FILES,
) -> T:
    """What `look` gives on this rank, once it is known to succeed on all. Collective.

    Each rank opens plans and manifests for itself. Without this, one whose mount is gone
    would raise alone, and the others wait for it until they time out.

    Args:
        what: names what is looked at where it is not the same on all ranks.
        look: reads files and changes nothing. May raise any error.
        identity: a small value that must be equal on all ranks.
        remedy: what a person does where they differ.

    Raises what `look` raised where that is the same on all ranks; RanksDifferError, alike
    on all, naming host and rank of the first that fails or sees otherwise than rank 0.
    """
    failure: Exception | None = None
    try:
        value = look()
        seen = identity(value)
    except Exception as error:  # told to all, raised below
        failure, seen = error, None
    said = None if failure is None else f"{type(failure).__name__}: {_text(failure)}"
    gathered = ranks.gather_objects((socket.gethostname(), said, seen))
    if failure is not None and all(other == said for _, other, _ in gathered):
        if isinstance(failure, AliaError):
            failure.on_all_ranks = True
        raise failure
    if failure is not None and not isinstance(failure, AliaError | OSError):
        raise failure  # a fault of the program: with its traceback
    first_host, _, first = gathered[0]
    for rank, (host, other, theirs) in enumerate(gathered):
        if other is not None:
            raise RanksDifferError(
                f"rank {rank} on {host}: {other.partition(': ')[2]}; the other ranks see "
                f"it otherwise; nothing was changed; {remedy}"
            )
        if theirs != first:
            raise RanksDifferError(
                f"rank {rank} on {host}: {what}: is {theirs} there, {first} on rank 0 on "
                f"{first_host}; nothing was changed; {remedy}"
            )
    return value


def on_first_rank(ranks: Ranks, look: Callable[[], None]) -> None:
    """Run `look` on rank 0 alone, as what it reads is too much for each to read. Collective.

    Raises the AliaError that it raises, or one of the same words, on all ranks.
    """
    failure: AliaError | None = None
    if ranks.rank == 0:
        try:
            look()
        except AliaError as error:
            failure = error
    said = ranks.gather_objects(None if failure is None else str(failure))[0]
    if said is not None:
        failure = failure or AliaError(said)
        failure.on_all_ranks = True
        raise failure


def _text(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return str(error)
