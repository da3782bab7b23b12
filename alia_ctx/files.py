"""Files that are whole or absent, and directories with one writer:

atomic writes, locks, checksums, and a quick fingerprint of big files.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import xxhash
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from alia_ctx.errors import AliaError, ConfigError, Problem

_HEAD_BYTES = 4096
_WHOLE_BYTES = 64 << 20
_WINDOWS = 256
_LOCK_SECONDS = 1.0  # a holder that is just leaving is gone by then
# What file systems answer that have no locks at all (some mounts of Lustre and NFS).
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class BusyError(AliaError):
    """Another process writes to the directory."""


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of `path` for writing; it takes the name `path` only if
    the block succeeds.

    The temporary name holds the process id, so that two writers never share one; the
    bytes are on disk (fsync) before the rename, so that a power cut leaves the old file
    or the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, with a ValueError for whatever is no JSON that Python can hold.

    Upstream gives RecursionError for brackets nested some thousand deep, which no
    reader of a foreign file expects.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; OSError, or ValueError where the file holds none."""
    value = parse_json(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def remove_own(directory: Path, is_own: Callable[[str], bool]) -> None:
    """Remove what a killed writer of ours left in `directory`, and the directory.

    AliaError, with nothing removed, where it holds what we never put there: everybody
    may give a directory any name.
    """
    require_own(directory, is_own)
    shutil.rmtree(directory, ignore_errors=True)


def require_own(directory: Path, is_own: Callable[[str], bool]) -> None:
    """AliaError where `directory` holds what we never put there, or is a link or a file."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise AliaError(f"{directory}: is no directory of ours; move it away")
    if not directory.is_dir():
        return
    foreign = sorted(name for name in os.listdir(directory) if not is_own(name))
    if foreign:
        raise AliaError(
            f"{directory}: holds what is not ours ({', '.join(foreign[:3])}) and would be "
            "removed; move it away"
        )


def require_replaceable(
    path: Path, option: str, what: str, suffixes: Sequence[str], mark: bytes | None
) -> None:
    """ConfigError where `path`, which a person gave as `option` for us to write, is not
    called as `what` is, or is there and is something else, which would be lost.

    mark: bytes near the beginning of each such file of ours; None takes any file that is
    called so, as where a person said that it may be replaced.
    """
    problem = None
    if path.suffix.lower() not in suffixes:
        rule = f"{what} is called {' or '.join(suffixes)}"
        problem = Problem(option, path, rule, f"name it so, as in {path}{suffixes[0]}")
    elif os.path.lexists(path) and not path.is_file() and not path.is_symlink():
        problem = Problem(option, path, "is there, and is no file", "choose another")
    elif mark is not None and path.is_file() and path.stat().st_size:
        with open(path, "rb") as stream:
            is_ours = mark in stream.read(_HEAD_BYTES)
        if not is_ours:
            rule = f"is there already, is not {what} of ours, and would be lost"
            problem = Problem(
                option, path, rule, "choose another place, or move it away"
            )
    if problem is not None:
        raise ConfigError("", [problem])


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as indented JSON with sorted keys, so that equal values
    are equal bytes.
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a name of a file that is no UTF-8, which JSON escapes
        data = json.dumps(value, indent=1, sort_keys=True).encode()
    with atomic_file(path) as stream:
        stream.write(data + b"\n")


@contextmanager
def exclusive(
    directory: Path,
    what: str,
    *,
    rank: int = 0,
    gather: Callable[[str | None], list[str | None]] = lambda error: [error],
) -> Iterator[None]:
    """Be the only writer of `directory` for as long as the block runs.

    The lock is the operating system's (flock), on the file `.NAME.lock` beside the
    directory, so that one of a dead process is no obstacle; its text tells host, pid,
    job and `what` of the holder. Where the file system has no locks, `filelock` takes
    the file's existence for one. With several ranks, rank 0 holds it, and `gather`
    (a collective: the values of all ranks, on all) tells the others how it went.

    Raises BusyError, on all ranks and in one line that names the holder, where another
    process holds it; AliaError where the file cannot be made.
    """
    lock, error = None, None
    if rank == 0:
        try:
            if directory.is_symlink() and not directory.exists():
                raise AliaError(
                    f"{directory}: is a link to {directory.readlink()}, which is not "
                    "there; mount it, or remove the link"
                )
            lock = _lock(directory.resolve(), what)
        except AliaError as refusal:
            error = str(refusal)
    error = gather(error)[0]
    if error is not None:
        raise BusyError(error)
    try:
        yield
    finally:
        if lock is not None:
            _unlock(lock)


def _lock(directory: Path, what: str) -> BaseFileLock | None:
    path = directory.with_name(f".{directory.name}.lock")
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout:
        raise BusyError(
            f"{directory}: {_holder(path)} is writing to it; wait for it to end, or end it"
        ) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise AliaError(
            f"{path}: cannot be locked ({error.strerror or error}); mend the permissions "
            "or choose another place"
        ) from error
    if not isinstance(lock, SoftFileLock):  # whose text is its own
        note = {
            "what": what,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with suppress(OSError):  # a full disk is no reason not to hold the lock
            path.write_text(json.dumps(note) + "\n", encoding="utf-8")
    return lock


def _unlock(lock: BaseFileLock) -> None:
    """Let go, and leave no file: whoever waits for a removed one notices and starts over
    (filelock compares the link count after locking).
    """
    if not isinstance(lock, SoftFileLock):
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _holder(path: Path) -> str:
    try:
        note: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        job = f", job {note['job']}" if note["job"] else ""
        return (
            f"`{note['what']}` (pid {note['pid']} on {note['host']}{job}, since "
            f"{note['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def checksum(data: bytes | memoryview) -> str:
    """xxh3_128 of `data` in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def file_checksum(path: Path, block_bytes: int = 16 << 20) -> str:
    """xxh3_128 of all bytes of a file, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(block_bytes):
            digest.update(block)
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """xxh3_128 over a file's size and content, in hex; quick for files of any size.

    Files up to 64 MiB are read whole. Of bigger ones 256 evenly spaced windows of 256
    KiB are read, the first
    and last bytes among them: an edit between the windows that keeps the size is not seen.
    """
    size = path.stat().st_size
    digest = xxhash.xxh3_128(str(size).encode())
    window = _WHOLE_BYTES // _WINDOWS
    with open(path, "rb") as stream:
        if size <= _WHOLE_BYTES:
            digest.update(stream.read())
            return digest.hexdigest()
        for number in range(_WINDOWS):
            stream.seek((size - window) * number // (_WINDOWS - 1))
            digest.update(stream.read(window))
    return digest.hexdigest()
