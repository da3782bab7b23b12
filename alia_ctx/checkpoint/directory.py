"""Checkpoints as directories: names, manifests, checksums, atomic commit, retention. No
tensors here.

A checkpoint is a directory that exists whole or not at all:

    DIR/manifest.json    what it is: model, RoPE, ledger, data cursor, and the checksum
    of every other file DIR/state/           Megatron distributed checkpoint: weights,
    and the optimizer where it was kept DIR/assets/          what travels with the
    weights: config.json, tokenizer files, generation_config.json

It is written under a temporary name beside its final one, flushed to disk, and renamed.
A reader therefore never meets a half-written checkpoint; leftovers of killed writers
are removed by the next one. What is removed is known by more than a name that anybody
could give: the temporary directory by a record beside it of what is in it, which a copy of
both still matches, what was replaced or retired by a random number in its name.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from alia_ctx.checkpoint.manifest import CHECKPOINT_NAME, MANIFEST, Manifest
from alia_ctx.errors import CheckpointError
from alia_ctx.files import file_checksum

STATE = "state"
ASSETS = "assets"
# A file in a temporary directory until that is whole.
INCOMPLETE = "alia_ctx_incomplete"
_TEMPORARY_SUFFIX = ".incomplete"
_ASIDE = re.compile(r"(.+)\.(replaced|retired)-[0-9a-f]{8}")


def checkpoint_name(update: int) -> str:
    return f"update-{update:08d}"


def update_of(checkpoint: Path | None) -> int:
    """The update that a checkpoint's name says, the number of those it has done; 0 for
    none.
    """
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def temporary_path(final: Path) -> Path:
    """Where `final` is written before it is committed."""
    return final.with_name(final.name + _TEMPORARY_SUFFIX)


def begin(final: Path) -> Path:
    """Make the temporary directory in which `final` is to be written;

    removes what a killed writer left there. CheckpointError as `require_free`.
    """
    require_free(final)
    temporary = temporary_path(final)
    discard(temporary)
    try:
        (temporary / STATE).mkdir(parents=True)
        record_begun(temporary)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or temporary}: cannot be made ({error.strerror or error}); "
            "make room, mend the permissions, or remove what is in the way"
        ) from error
    return temporary


def require_free(final: Path) -> None:
    """CheckpointError says what is in the way of writing `final`, a whole checkpoint that
    somebody gave its temporary name among it. Changes nothing.
    """
    temporary = temporary_path(final)
    if _in_the_way(temporary):
        raise CheckpointError(
            f"{temporary}: is in the way, and nothing shows that a killed writer left it "
            "there; move it away, or remove it if it is of no use"
        )


def _in_the_way(temporary: Path) -> bool:
    """Whether what bears a temporary directory's name is somebody else's: a link, a file,
    a whole checkpoint, or a directory of other things.
    """
    if temporary.is_symlink() or temporary.is_file():
        return True
    if not temporary.is_dir():
        return False
    names = set(os.listdir(temporary))
    ours = {STATE, ASSETS, INCOMPLETE}
    return bool(names - ours) and not was_begun(temporary)


def record_begun(temporary: Path) -> None:
    """Mark a temporary directory as ours to remove: by a random word in it, of which the
    record beside it knows.
    """
    word = f"{secrets.token_hex(16)}\n"
    (temporary / INCOMPLETE).write_text(word, encoding="utf-8")
    _record_proof(temporary, INCOMPLETE)


def seal(temporary: Path, name: str) -> None:
    """Take the mark out of a directory that is whole now. Until it has its final name the
    file `name`, which says what the directory is, proves in the mark's place that it is ours.
    """
    _record_proof(temporary, name)
    (temporary / INCOMPLETE).unlink(missing_ok=True)


def was_begun(temporary: Path) -> bool:
    """Whether a temporary directory is what was begun here, or a copy of both it and its
    record, or holds no file: not one that somebody gave its name.
    """
    if temporary.is_symlink() or not temporary.is_dir():
        return False
    if not any(path.is_symlink() or path.is_file() for path in temporary.rglob("*")):
        return True
    with suppress(OSError):  # what cannot be read proves nothing
        return any(
            (temporary / name).is_file() and file_checksum(temporary / name) == proof
            for name, proof in _proofs(temporary).items()
        )
    return False


def _record(temporary: Path) -> Path:
    return temporary.with_name(f".{temporary.name}.begun")


def _record_proof(temporary: Path, name: str) -> None:
    with _record(temporary).open("a", encoding="utf-8") as stream:
        stream.write(f"{file_checksum(temporary / name)} {name}\n")
        stream.flush()
        os.fsync(stream.fileno())


def _proofs(temporary: Path) -> dict[str, str]:
    """By the record, checksums of files by each of which the directory is known."""
    try:
        lines = _record(temporary).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    pairs = (line.partition(" ") for line in lines)
    return {name: proof for proof, _, name in pairs if name}


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
    seal(temporary, MANIFEST)
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
    _record(temporary).unlink(missing_ok=True)
    _flush_directory(final.parent)
    for path in _set_aside(final.parent):
        if path.name.startswith(f"{final.name}.replaced-"):
            with suppress(OSError):  # what has its name is whole; `sweep` tries again
                _remove(path)


def _replace(temporary: Path, final: Path) -> None:
    """Swap directories through a third name: rename cannot replace a directory that has
    entries. A link is replaced by itself, not what it leads to.
    """
    os.rename(final, _aside(final, "replaced"))
    os.rename(temporary, final)


def _aside(path: Path, why: str) -> Path:
    """A name that nobody else gives, for what is to be removed."""
    return path.with_name(f"{path.name}.{why}-{secrets.token_hex(4)}")


def _set_aside(root: Path) -> list[Path]:
    return [root / name for name in os.listdir(root) if _ASIDE.fullmatch(name)]


def _remove(path: Path) -> None:
    """Remove a directory, or a link or file that stands where one should be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(temporary: Path) -> None:
    """Forget a checkpoint that was begun and shall not be committed."""
    if temporary.is_dir() and not temporary.is_symlink():
        # By what goes last the rest is known, should we be killed before the end.
        for name in set(os.listdir(temporary)) - set(_proofs(temporary)):
            with suppress(OSError):
                _remove(temporary / name)
    shutil.rmtree(temporary, ignore_errors=True)
    if not temporary.exists():
        _record(temporary).unlink(missing_ok=True)


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
        os.rename(path, _aside(path, "retired"))
        retired.append(path)
    return retired


def sweep(root: Path) -> None:
    """Remove what `retain` retired and what `publish` replaced, now or before a kill.

    Takes as long as the file system takes to free it all.
    """
    for path in _set_aside(root):
        name, why = _ASIDE.fullmatch(path.name).groups()  # type: ignore[union-attr]
        if why == "retired" or (root / name).exists():
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
        if p.is_file() and p not in (directory / MANIFEST, directory / INCOMPLETE)
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
