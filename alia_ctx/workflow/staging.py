"""Text copied to the disk of each host before a stage trains on it, where `data.stage_to`
asks for it: reads at random places are then none of the shared file system's.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from alia_ctx.checkpoint.opening import Ranks
from alia_ctx.config.run import RunConfig
from alia_ctx.data.tokens import TokenStore
from alia_ctx.data.tokens.said import said_path
from alia_ctx.data.tokens.store_files import CHAT_SUFFIXES, RANGE, store_path
from alia_ctx.errors import DataError
from alia_ctx.progress import say
from alia_ctx.train.agreement import on_all_ranks
from alia_ctx.workflow.stores import open_stores


def staged(run: RunConfig, name: str, ranks: Ranks) -> RunConfig:
    """`run` with the stores of a stage on this host's own disk, where `data.stage_to`
    names a place there; else `run`. One rank a host copies, the others wait. Collective.

    Variables in the place are those of this process, as a job has a folder of its own on
    each node. A copy that is there and whole is used again. DataError, on all ranks,
    where one cannot copy.
    """
    if run.data.stage_to is None:
        return run
    hosts = ranks.gather_objects(socket.gethostname())
    is_first = hosts.index(hosts[ranks.rank]) == ranks.rank
    what = f"the text of stage {name} in data.stage_to={run.data.stage_to}"
    # Those that wait look when it is there.
    error = _attempt(lambda: _copies(run, name, make=True)) if is_first else None
    for rank, said in enumerate(ranks.gather_objects(error)):
        if said is not None:
            raise DataError(f"rank {rank} on {hosts[rank]}: {what}: {said}")
    places = on_all_ranks(ranks, what, lambda: _copies(run, name, make=False))
    sources = {
        n: replace(spec, store=str(places[n])) if n in places else spec
        for n, spec in run.data.sources.items()
    }
    return replace(run, data=replace(run.data, sources=sources))


def _attempt(copy: Callable[[], object]) -> str | None:
    try:
        copy()
    except OSError as error:
        return f"{error.filename}: {error.strerror}; make room, or leave stage_to out"
    except DataError as error:
        return str(error)
    return None


def _copies(run: RunConfig, name: str, *, make: bool) -> dict[str, Path]:
    return {n: _copy(run, s, make=make) for n, s in open_stores(run, name).items()}


def _copy(run: RunConfig, store: TokenStore, *, make: bool) -> Path:
    """The prefix of a store's copy; `make`: made here unless it is there and the same."""
    place = Path(os.path.expandvars(str(run.data.stage_to)))
    if "$" in str(place):
        raise DataError(
            f"{place}: a variable is not set on {socket.gethostname()}; set it, or write "
            "the place out"
        )
    prefix = place / f"alia-ctx-{store.fingerprint[:16]}" / store.prefix.name
    if make and not _is_same(prefix, store):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        for file in filter(Path.is_file, _files(store)):
            temporary = prefix.parent / f".{file.name}.{os.getpid()}.tmp"
            try:
                shutil.copyfile(file, temporary)
                os.replace(temporary, prefix.parent / file.name)
            finally:
                temporary.unlink(missing_ok=True)
        say(f"{store.prefix} is copied to {prefix.parent} on {socket.gethostname()}")
    if not _is_same(prefix, store):
        raise DataError(f"{prefix}: is not {store.prefix}; remove it, and start again")
    return prefix


def _files(store: TokenStore) -> list[Path]:
    """The files of a store. Of one that was made elsewhere nothing else is meant by their
    names: its corpus may lie beside it.
    """
    if store.sidecar:
        return [store_path(store.prefix, suffix) for suffix in CHAT_SUFFIXES]
    files = [store.data_path, store.index_path, store_path(store.prefix, RANGE)]
    if store.weights is not None:
        files += [store.weights_path, said_path(store.prefix)]
    return files


def _is_same(prefix: Path, store: TokenStore) -> bool:
    try:
        return TokenStore(prefix).fingerprint == store.fingerprint
    except DataError:
        return False
