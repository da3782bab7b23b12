"""The one door to a checkpoint: what it says of itself is compared with what is there,
by all ranks together, before anything of it is used.

Whether a checkpoint is damaged is never decided on one reading. A rank whose file
system is gone, or whose memory flips a bit, sees damage where there is none; so what
one rank finds wrong all ranks read again, past their caches. Only where all of them see
the same damage is the checkpoint damaged (DamagedError). Everything else (a rank sees
otherwise than the others, a second reading otherwise than the first, the system refuses
to read) is UnreadableError: it names host, rank and file, and nothing is changed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from alia_ctx.checkpoint.directory import STATE, list_checkpoints
from alia_ctx.checkpoint.manifest import (
    MANIFEST,
    DamagedError,
    Manifest,
    UnreadableError,
    read_manifest,
)
from alia_ctx.errors import CheckpointError
from alia_ctx.files import checksum, file_checksum

_METADATA = f"{STATE}/.metadata"
_NOTHING_CHANGED = "nothing was changed; see to that file system and start again"


class Ranks(Protocol):
    """Ranks that look at a checkpoint together; a training engine is one."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def gather_objects(self, value: Any) -> list[Any]: ...


class OneRank:
    """One process by itself."""

    rank, world_size = 0, 1

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]


@dataclass(frozen=True)
class _Finding:
    """What one rank found: `error` in words, and whether it would be damage."""

    host: str
    error: str | None = None
    damage: bool = False
    value: Any = None


def open_checkpoint(
    path: Path,
    ranks: Ranks | None = None,
    *,
    weights: bool = True,
) -> Manifest:
    """The manifest of the checkpoint at `path`, once the checkpoint is found to be whole.

    Compared are the manifest's checksums of itself, the names of all files with the
    manifest's, and the checksum of every file: each rank reads its share of the bytes
    once (several GB/s a core, or what the file system gives). `weights=False` leaves
    out the tensor files, for callers that check them beside reading (`verify_files`).
    Collective over `ranks`, with the same outcome on all.

    Raises DamagedError where all ranks agree on what is damaged, UnreadableError where
    they do not or where something cannot be read, CheckpointError where there is no
    checkpoint.
    """
    ranks = ranks or OneRank()
    _agreed(ranks, path, lambda: _manifest_identity(path))
    manifest = read_manifest(path)
    _agreed(ranks, path, lambda: verify_names(path, manifest))
    names = [n for n in sorted(manifest.files) if weights or not _holds_tensors(n)]
    first, suspects = _look_at_shares(ranks, path, manifest, names)
    _agreed(
        ranks,
        path,
        lambda: _verify_bytes(path, manifest, suspects, fresh=True),
        first,
    )
    return manifest


def agreed_checkpoints(root: Path, ranks: Ranks | None = None) -> list[Path]:
    """Checkpoints of a stage directory, the oldest first, damaged ones among them.

    Raises UnreadableError where the ranks do not see the same. Collective.
    """
    names = _agreed(
        ranks or OneRank(),
        root,
        lambda: [path.name for path in list_checkpoints(root)],
    )
    return [root / name for name in names]


def verify_files(
    path: Path,
    manifest: Manifest,
    *,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Compare the names of all files with the manifest, and size and checksum of every
    `parts`-th of them from `part` on. One reading, by this process alone.

    Raises DamagedError naming the first file that is missing, surplus, of another size,
    or changed; UnreadableError where one cannot be read.
    """
    verify_names(path, manifest)
    _verify_bytes(path, manifest, sorted(manifest.files)[part::parts])


def verify_names(path: Path, manifest: Manifest) -> None:
    """DamagedError where the manifest does not name exactly the files of `path`."""
    present = set()
    for folder, _, files in os.walk(path, onerror=_raise):
        below = Path(folder).relative_to(path)
        present |= {str(below / file) for file in files}
    present.discard(MANIFEST)
    if _METADATA not in manifest.files:
        raise DamagedError(
            f"{path / MANIFEST}: names no {_METADATA}; the checkpoint is damaged, use "
            "another one"
        )
    for name in sorted(set(manifest.files) - present):
        raise DamagedError(
            f"{path / name}: missing; the checkpoint is damaged, use an older one"
        )
    for name in sorted(present - set(manifest.files)):
        raise DamagedError(
            f"{path / name}: is not among the files that the manifest names; remove it "
            "if it is yours, else use another checkpoint"
        )


def _verify_bytes(
    path: Path,
    manifest: Manifest,
    names: Iterable[str],
    *,
    fresh: bool = False,
) -> None:
    for name in names:
        expected, file = manifest.files[name], path / name
        if fresh:
            _forget_cached(file)
        try:
            size = file.stat().st_size
            if size != expected["bytes"]:
                raise DamagedError(
                    f"{file}: {size} bytes instead of {expected['bytes']}; use an older "
                    "checkpoint"
                )
            digest = file_checksum(file)
        except FileNotFoundError:
            raise DamagedError(
                f"{file}: missing; the checkpoint is damaged, use an older one"
            ) from None
        except OSError as error:  # which names no file where a read fails
            raise UnreadableError(
                f"{file}: cannot be read ({error.strerror or error})"
            ) from error
        if digest != expected["xxh3_128"]:
            raise DamagedError(
                f"{file}: checksum differs, bytes were changed ({digest} instead of "
                f"{expected['xxh3_128']}); use an older checkpoint"
            )


def _look_at_shares(
    ranks: Ranks,
    path: Path,
    manifest: Manifest,
    names: list[str],
) -> tuple[list[_Finding], list[str]]:
    """What each rank finds in its share of the files, and all files that are suspicious."""
    wrong = {}
    for name in names[ranks.rank :: ranks.world_size]:

        def look(name: str = name) -> None:
            _verify_bytes(path, manifest, [name])

        finding = _try(look)
        if finding.error:
            wrong[name] = finding
    mine = next(iter(wrong.values()), _try(lambda: None))
    gathered = ranks.gather_objects((mine, list(wrong)))
    return (
        [finding for finding, _ in gathered],
        sorted(name for _, suspects in gathered for name in suspects),
    )


def _agreed(
    ranks: Ranks,
    path: Path,
    look: Callable[[], Any],
    first: list[_Finding] | None = None,
) -> Any:
    """What all ranks see; where they do not see one sound thing, all look once more.

    `first`: what they saw at first, where that was not `look`.
    """
    first = first or ranks.gather_objects(_try(look))
    if _is_sound(first):
        return first[0].value
    second = ranks.gather_objects(_try(look))
    if _is_sound(second) and not any(finding.damage for finding in first):
        return second[0].value  # the system refused to read, and then it did
    if second[0].damage and all(f.error == second[0].error for f in second):
        raise DamagedError(str(second[0].error))
    raise _unreadable(path, first if _is_sound(second) else second)


def _is_sound(findings: list[_Finding]) -> bool:
    return all(f.error is None and f.value == findings[0].value for f in findings)


def _unreadable(path: Path, findings: list[_Finding]) -> UnreadableError:
    """The error that names the first rank that sees something wrong, or other than rank 0."""
    wrong = [r for r, f in enumerate(findings) if f.error is not None]
    other = [r for r, f in enumerate(findings) if f.value != findings[0].value]
    rank = (wrong or other)[0]
    where = f"rank {rank} on {findings[rank].host}"
    if not wrong:
        seen = f"{path}: sees other things in it than rank 0 on {findings[0].host}"
    elif len(findings) == 1:
        again = ", which is not seen at a second reading" if findings[0].damage else ""
        seen = f"{findings[0].error}{again}"
    else:
        all_ranks = len(wrong) == len(findings)
        seen = (
            f"{findings[rank].error}{'' if all_ranks else ', the others see it whole'}"
        )
    return UnreadableError(f"{where}: {seen}; {_NOTHING_CHANGED}")


def _try(look: Callable[[], Any]) -> _Finding:
    host = socket.gethostname()
    try:
        return _Finding(host, value=look())
    except CheckpointError as error:
        return _Finding(host, str(error), isinstance(error, DamagedError))
    except OSError as error:
        reason = f"{error.filename}: cannot be read ({error.strerror or error})"
        return _Finding(host, reason)


def _manifest_identity(path: Path) -> str:
    """A checksum that is the same on all ranks if they read the same manifest."""
    read_manifest(path)
    return checksum((path / MANIFEST).read_bytes())


def _holds_tensors(name: str) -> bool:
    return name.endswith(".distcp")


def _forget_cached(file: Path) -> None:
    """Have the system read the file again, where it lets us."""
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _raise(error: OSError) -> None:
    raise error
