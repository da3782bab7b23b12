"""Checkpoints as directories: names, manifests, checksums, atomic commit, retention. No
tensors here.

A checkpoint is a directory that exists whole or not at all:

    DIR/manifest.json    what it is: model, RoPE, ledger, data cursor, and the checksum
    of every other file DIR/state/           Megatron distributed checkpoint: weights,
    and the optimizer where it was kept DIR/assets/          what travels with the
    weights: config.json, tokenizer files, generation_config.json

It is written under a temporary name beside its final one, flushed to disk, and renamed.
A reader therefore never meets a half-written checkpoint; leftovers of killed writers
are removed by the next one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alia_ctx.checkpoint.manifest import MANIFEST, Manifest
from alia_ctx.errors import CheckpointError
from alia_ctx.files import file_checksum

STATE = "state"
ASSETS = "assets"
_NAME = re.compile(r"update-(\d{8})")
_TEMPORARY_SUFFIX = ".incomplete"
_RETIRED_SUFFIX = ".retired"


def checkpoint_name(update: int) -> str:
    return f"update-{update:08d}"


def temporary_path(final: Path) -> Path:
    """Where `final` is written before it is committed."""
    return final.with_name(final.name + _TEMPORARY_SUFFIX)


def begin(final: Path) -> Path:
    """Make the temporary directory in which `final` is to be written;

    removes what a killed writer left there.
    """
    temporary = temporary_path(final)
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / STATE).mkdir(parents=True)
    return temporary


def commit(
    temporary: Path,
    final: Path,
    manifest: Manifest,
    *,
    overwrite: bool = False,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> Manifest:
    """Checksum every file of `temporary`, add the manifest, flush, and rename to `final`.

    Raises CheckpointError where `final` exists and `overwrite` is false. Returns the
    manifest with checksums. Reads every byte once (xxh3_128, several GB/s a core, from
    the page cache it was just written to), but for the files in `known`: their entries,
    by path below `temporary`, were formed as they were written.
    """
    if final.exists() and not overwrite:
        raise CheckpointError(
            f"{final} exists; remove it, choose another name, or allow overwriting"
        )
    manifest = dataclasses.replace(manifest, files=_checksums(temporary, known or {}))
    document = json.dumps(manifest.to_json(), indent=1, sort_keys=True)
    (temporary / MANIFEST).write_text(document + "\n", encoding="utf-8")
    publish(temporary, final)
    return manifest


def publish(temporary: Path, final: Path) -> None:
    """Flush the whole directory `temporary` to disk, then give it the name `final`,
    replacing what was there.
    """
    _flush(temporary)
    if final.exists():
        _replace(temporary, final)
    else:
        os.rename(temporary, final)
    _flush_directory(final.parent)


def _replace(temporary: Path, final: Path) -> None:
    """Swap directories through a third name: rename cannot replace a directory that has entries."""
    old = final.with_name(final.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(final, old)
    os.rename(temporary, final)
    shutil.rmtree(old)


def discard(temporary: Path) -> None:
    """Forget a checkpoint that was begun and shall not be committed."""
    shutil.rmtree(temporary, ignore_errors=True)


def verify_files(
    path: Path, manifest: Manifest, *, part: int = 0, parts: int = 1
) -> None:
    """Compare size and checksum of every `parts`-th file from `part` on with the manifest.

    Raises CheckpointError naming the first file that is missing, of another size, or changed.
    """
    for name in sorted(manifest.files)[part::parts]:
        expected = manifest.files[name]
        file = path / name
        if not file.is_file():
            raise CheckpointError(
                f"{file}: missing; the checkpoint is damaged, use an older one"
            )
        size = file.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{file}: {size} bytes instead of {expected['bytes']}; use an older checkpoint"
            )
        if file_checksum(file) != expected["xxh3_128"]:
            raise CheckpointError(
                f"{file}: checksum differs, bytes were changed; use an older checkpoint"
            )


def list_checkpoints(root: Path) -> list[Path]:
    """Committed checkpoints of a stage directory, the oldest first."""
    if not root.is_dir():
        return []
    return sorted(
        p
        for p in root.iterdir()
        if _NAME.fullmatch(p.name) and (p / MANIFEST).is_file()
    )


def latest(root: Path) -> Path | None:
    """The newest committed checkpoint below `root`, or None."""
    found = list_checkpoints(root)
    return found[-1] if found else None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that nothing takes it for one;

    it is kept for whoever wants to look.
    """
    aside = path.with_name(path.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    return aside


def retain(
    root: Path, *, keep_last: int, keep_every: int = 0, keep: Iterable[Path] = ()
) -> list[Path]:
    """Retire checkpoints but the newest `keep_last`, each `keep_every` updates, and those
    in `keep`; returns those.

    They are no checkpoints from then on, whenever we are killed; `sweep` frees their space.
    """
    retired = []
    kept = set(keep)
    for path in list_checkpoints(root)[: -keep_last or None]:
        update = int(path.name.rsplit("-", 1)[1])
        if path in kept or (keep_every and update % keep_every == 0):
            continue
        target = path.with_name(path.name + _RETIRED_SUFFIX)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(path, target)
        retired.append(path)
    return retired


def sweep(root: Path) -> None:
    """Remove what `retain` retired, now or before a kill.

    Takes as long as the file system takes to free it all.
    """
    for path in root.glob("*" + _RETIRED_SUFFIX):
        shutil.rmtree(path, ignore_errors=True)


def file_entry(file: Path) -> dict[str, Any]:
    """Size and checksum of a file as the manifest lists them; flushes the file to disk first."""
    _flush_file(file)
    return {"bytes": file.stat().st_size, "xxh3_128": file_checksum(file)}


def _checksums(
    directory: Path, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    files = sorted(
        p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST
    )
    names = {str(p.relative_to(directory)): p for p in files}
    return {
        name: dict(known[name]) if name in known else file_entry(p)
        for name, p in names.items()
    }


def _flush(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        if path.is_dir():
            _flush_directory(path)
        else:
            _flush_file(path)


def _flush_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
