"""Where a store is made, and how it takes the place of the one before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from alia_ctx.files import remove_own, require_own


def work_path(prefix: Path) -> Path:
    """Where a store is made, before its files take their names."""
    return prefix.with_name(prefix.name + ".work")


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
    folder, which `TokenStore` does not open.
    """
    prefix.with_name(prefix.name + suffixes[-1]).unlink(missing_ok=True)
    for suffix in suffixes:
        os.replace(
            made.with_name(made.name + suffix), prefix.with_name(prefix.name + suffix)
        )
