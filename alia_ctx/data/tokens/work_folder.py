"""Where a store is made, and how it takes the place of the one before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from alia_ctx.data.tokens.store_files import (
    CHAT_SUFFIXES,
    has_documents,
    read_sidecar,
    store_path,
)
from alia_ctx.errors import DataError
from alia_ctx.files import remove_own, require_own


def work_path(prefix: Path) -> Path:
    """Where a store is made, before its files take their names."""
    return store_path(prefix, ".work")


def remove_work(prefix: Path) -> None:
    """Remove the work folder of `prefix`; AliaError where it is somebody else's."""
    remove_own(work_path(prefix), partial(_is_own, prefix.name))


def make_work(prefix: Path) -> Path:
    """The work folder of `prefix`, made where it is not there; AliaError where it holds
    what no work of ours leaves.
    """
    work = work_path(prefix)
    require_own(work, partial(_is_own, prefix.name))
    work.mkdir(parents=True, exist_ok=True)
    return work


def is_unfinished(prefix: Path) -> bool:
    """Whether a work of ours was begun at `prefix` and not finished: not where somebody
    else's folder is called so.
    """
    work = work_path(prefix)
    begun = (work / "identity.json").is_file() or is_of_conversations(work)
    is_ours = begun or (work.is_dir() and has_documents(prefix))
    return is_ours and all(_is_own(prefix.name, entry) for entry in os.listdir(work))


def is_of_conversations(work: Path) -> bool:
    return (work / "chat").is_file()


def _is_own(name: str, entry: str) -> bool:
    return (
        entry in ("identity.json", "lock", "chat", "joined")
        or entry.startswith(("shard-", ".shard-", ".identity.json.", f".{name}."))
        or entry.startswith(f"{name}.")
    )


def publish(made: Path, prefix: Path, suffixes: Sequence[str]) -> None:
    """Give the whole files `MADE+SUFFIX` their names at `prefix`; the last of `suffixes`
    is that of the sidecar, the work folder stays until the caller removes it.

    Whoever is killed between the renames leaves a store without sidecar beside its work
    folder, which `TokenStore` does not open. What only the store before has goes first:
    loss weights of other tokens make a store of text unreadable.
    """
    if _is_ours(prefix):
        for suffix in CHAT_SUFFIXES:
            if suffix not in suffixes:
                store_path(prefix, suffix).unlink(missing_ok=True)
    store_path(prefix, suffixes[-1]).unlink(missing_ok=True)
    for suffix in suffixes:
        os.replace(store_path(made, suffix), store_path(prefix, suffix))


def _is_ours(prefix: Path) -> bool:
    """Whether the store that is there, whole or not, is one that `tokenize` wrote."""
    try:
        return bool(read_sidecar(prefix)) or is_of_conversations(work_path(prefix))
    except DataError:  # ours, and broken
        return True
