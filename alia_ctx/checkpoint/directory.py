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
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alia_ctx.checkpoint.manifest import CHECKPOINT_NAME, MANIFEST, Manifest
from alia_ctx.errors import CheckpointError
from alia_ctx.files import file_checksum

STATE = "state"
ASSETS = "assets"
_TEMPORARY_SUFFIX = ".incomplete"
_RETIRED_SUFFIX = ".retired"
_REPLACED_SUFFIX = ".replaced"


def checkpoint_name(update: int) -> str:
    return f"update-{update:08d}"


def temporary_path(final: Path) -> Path:
    """Where `final` is written before it is committed."""
    return final.with_name(final.name + _TEMPORARY_SUFFIX)


def begin(final: Path) -> Path:
    """Make the temporary directory in which `final` is to be written;

    removes what a killed writer left there. CheckpointError says what is in the way.
    """
    temporary = temporary_path(final)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / STATE).mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or temporary}: cannot be made ({error.strerror or error}); "
            "make room, mend the permissions, or remove what is in the way"
        ) from error
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
    files = _checksums(temporary, known or {})
    unseen = sorted(set(known or {}) - set(files))
    if unseen:
        raise CheckpointError(
            f"{temporary / unseen[0]}: was written by another rank and is not here; all "
            "ranks must write to one file system"
        )
    manifest = dataclasses.replace(manifest, files=files)
    document = json.dumps(manifest.to_json(), indent=1, sort_keys=True)
    (temporary / MANIFEST).write_text(document + "\n", encoding="utf-8")
    publish(temporary, final)
    return manifest


def publish(temporary: Path, final: Path) -> None:
    """Flush the whole directory `temporary` to disk, then give it the name `final`,
    replacing what was there.
    """
    _flush(temporary)
    if final.exists() or final.is_symlink():
        _replace(temporary, final)
    else:
        os.rename(temporary, final)
    _flush_directory(final.parent)


def _replace(temporary: Path, final: Path) -> None:
    """Swap directories through a third name: rename cannot replace a directory that has
    entries. A link is replaced by itself, not what it leads to.
    """
    old = final.with_name(final.name + _REPLACED_SUFFIX)
    _remove(old)
    os.rename(final, old)
    os.rename(temporary, final)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a directory, or a link or file that stands where one should be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(temporary: Path) -> None:
    """Forget a checkpoint that was begun and shall not be committed."""
    shutil.rmtree(temporary, ignore_errors=True)


def list_checkpoints(root: Path) -> list[Path]:
    """Everything below a stage directory that bears a checkpoint's name, the oldest first.

    Whether it is one only opening tells: a checkpoint whose manifest cannot be read is
    not taken for none. Raises OSError where `root` cannot be read.
    """
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    return [root / name for name in sorted(names) if CHECKPOINT_NAME.fullmatch(name)]


def latest(root: Path) -> Path | None:
    """The newest checkpoint below `root`, or None."""
    found = list_checkpoints(root)
    return found[-1] if found else None


def remnants(root: Path) -> list[Path]:
    """What shows that `root` once held checkpoints, where it holds none now."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    return [
        root / name
        for name in sorted(names)
        if CHECKPOINT_NAME.match(name) and not name.endswith(_TEMPORARY_SUFFIX)
    ]


def retain(
    root: Path, *, keep_last: int, keep_every: int = 0, keep: Iterable[Path] = ()
) -> list[Path]:
    """Retire checkpoints but the newest `keep_last`, each `keep_every` updates, and those
    in `keep`, which are not counted; returns those.

    They are no checkpoints from then on, whenever we are killed; `sweep` frees their space.
    """
    retired = []
    kept = set(keep)
    counted = [path for path in list_checkpoints(root) if path not in kept]
    for path in counted[: -keep_last or None]:
        update = int(path.name.rsplit("-", 1)[1])
        if keep_every and update % keep_every == 0:
            continue
        target = path.with_name(path.name + _RETIRED_SUFFIX)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(path, target)
        retired.append(path)
    return retired


def sweep(root: Path) -> None:
    """Remove what `retain` retired and what `publish` replaced, now or before a kill.

    Takes as long as the file system takes to free it all.
    """
    replaced = [
        path
        for path in root.glob("*" + _REPLACED_SUFFIX)
        if path.with_name(path.name.removesuffix(_REPLACED_SUFFIX)).exists()
    ]
    for path in [*root.glob("*" + _RETIRED_SUFFIX), *replaced]:
        shutil.rmtree(path, ignore_errors=True)


def file_entry(file: Path) -> dict[str, Any]:
    """Size and checksum of a file as the manifest lists them; flushes the file to disk first."""
    _flush_file(file)
    return {"bytes": file.stat().st_size, "xxh3_128": file_checksum(file)}


def _checksums(
    directory: Path, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    names = {
        str(p.relative_to(directory)): p
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p != directory / MANIFEST
    }
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
