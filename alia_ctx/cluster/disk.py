"""The file system that a run is on: its kind, whether all hosts see the same, locks, speed,
and room.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from alia_ctx.cluster.findings import Finding, broken, good, listed, weak

_SHARED = {
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "beegfs",
    "ceph",
    "fuse.ceph",
    "wekafs",
    "pvfs2",
}
_MEMORY = {"tmpfs", "ramfs"}
_BLOCK = 4 << 20
_SLOW_BYTES = 200e6  # bytes a second over all ranks
_LONG_SAVE = 600.0  # seconds
_GIB = float(1 << 30)


class Ranks(Protocol):
    """The ranks that look together."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def gather_objects(self, value: Any) -> list[Any]: ...


def file_system(place: Path, mounts: str) -> tuple[str, str]:
    """(kind, mount point) of the file system of `place`, by the text of /proc/mounts."""
    best = ("unknown", "")
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        is_above = place == Path(point) or Path(point) in place.parents
        if is_above and len(point) >= len(best[1]):
            best = (fields[2], point)
    return best


def nearest(place: Path) -> Path:
    """`place`, or the nearest directory above it that is there."""
    place = place.absolute()
    return next(p for p in (place, *place.parents) if p.is_dir())


def disk(
    ranks: Ranks, place: Path, hosts: int, *, megabytes: int, needed_gib: float
) -> Iterator[Finding]:
    """All that is looked at in `place`, a directory. Collective; each rank writes
    `megabytes` MiB there, and removes them. `needed_gib`: what the run will write.
    """
    kind, point = file_system(place.resolve(), _mounts())
    words = f"{place}: {kind}, mounted on {point or '?'}"
    if kind in _MEMORY:
        remedy = "choose an `output` on a disk"
        yield weak("file system", f"{words}: memory, gone with the machine", remedy)
    elif hosts > 1 and kind not in _SHARED:
        remedy = "have `output` on a file system that all nodes share"
        yield weak("file system", f"{words}: usually of one host alone", remedy)
    else:
        yield good("file system", words)
    yield seen_by_all(ranks, place)
    yield locks(ranks, place)
    yield from speed(ranks, place, megabytes, needed_gib)
    yield room(place, needed_gib)


def _mounts() -> str:
    with suppress(OSError):
        return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    return ""


def seen_by_all(ranks: Ranks, place: Path) -> Finding:
    """Whether every rank sees what rank 0 has just written. Collective."""
    name = ranks.gather_objects(f".alia-ctx-doctor-{secrets.token_hex(8)}")[0]
    file, error = place / name, None
    if ranks.rank == 0:
        try:
            file.write_text(name)
        except OSError as failure:
            error = failure.strerror or str(failure)
    if failed := ranks.gather_objects(error)[0]:
        remedy = "mend the permissions, or choose another `output`"
        return broken("shared", f"rank 0 cannot write in {place}: {failed}", remedy)
    seen = False
    for _ in range(_TRIES):
        with suppress(OSError):
            seen = file.read_text() == name
        if seen:
            break
        time.sleep(0.25)
    everywhere = all(ranks.gather_objects(seen))
    if ranks.rank == 0:
        file.unlink(missing_ok=True)
    if everywhere:
        return good("shared", f"all {ranks.world_size} ranks see what rank 0 writes")
    if seen:
        return good("shared", "sees what rank 0 writes, unlike others")
    remedy = "have `output` on a file system that all nodes share"
    return broken("shared", f"does not see what rank 0 writes in {place}", remedy)


_KEPT_OUT, _LET_IN = "kept out", "let in"
_STATUS = 7  # of no failure of Python's own
_TRY = f"""
import fcntl, sys
with open(sys.argv[1]) as stream:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit({_STATUS})
"""
_TRIES = 20  # to see a new file: directories are cached for seconds on NFS


def locks(ranks: Ranks, place: Path) -> Finding:
    """Whether a lock (flock) that rank 0 holds keeps all others out: good only where each
    of them was refused it. Collective.
    """
    path = place / ranks.gather_objects(f".alia-ctx-lock-{secrets.token_hex(8)}")[0]
    held, answer = None, ""
    try:
        if ranks.rank == 0:
            held = open(path, "w", encoding="utf-8")  # noqa: SIM115 # held over a barrier
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        answer = error.strerror or str(error)
    remedy = "mount with flock (Lustre: -o flock); start no stage twice until then"
    if first := ranks.gather_objects(answer)[0]:
        words = f"rank 0 can lock no file in {place} ({first})"
    else:
        if ranks.world_size == 1:  # another process of this host
            answer = _tried_by_another(path)
        elif ranks.rank:
            answer = _tried(path)
        answers = ranks.gather_objects((socket.gethostname(), answer))
        tried = answers if ranks.world_size == 1 else answers[1:]
        words = _not_kept_out(tried)
    if held is not None:
        held.close()
    if ranks.rank == 0:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    if not words:
        return good("locks", "flock keeps other processes out")
    return weak("locks", words, remedy)


def _not_kept_out(answers: Sequence[Sequence[str]]) -> str:
    """Whom a lock that rank 0 holds did not keep out, of (host, answer); nothing where it
    was all of them.
    """
    hosts: dict[str, list[str]] = {}
    for host, answer in answers:
        if answer != _KEPT_OUT:
            hosts.setdefault(answer, []).append(host)
    said = []
    for answer, names in hosts.items():
        where = listed(dict.fromkeys(names))
        said.append(
            f"does not keep others out on {where}"
            if answer == _LET_IN
            else f"could not be tried on {where} ({answer})"
        )
    return f"a lock that rank 0 holds {', and '.join(said)}" if said else ""


def _tried_by_another(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _TRY, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (0, _STATUS):
        return _KEPT_OUT if done.returncode else _LET_IN
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def _tried(path: Path) -> str:
    error: OSError | None = None
    for _ in range(_TRIES):
        try:
            with open(path, encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _KEPT_OUT
        except FileNotFoundError as failure:
            error = failure
            time.sleep(0.25)
        except OSError as failure:
            error = failure
            break
        else:
            return _LET_IN
    return str(error and (error.strerror or error))


def speed(
    ranks: Ranks, place: Path, megabytes: int, needed_gib: float
) -> Iterator[Finding]:
    """Bytes a second that all ranks write, flush and read at the same time. Collective."""
    file = place / f".alia-ctx-doctor-{ranks.rank}-{secrets.token_hex(8)}"
    data, blocks = secrets.token_bytes(_BLOCK), max(1, (megabytes << 20) // _BLOCK)
    written = read = 0.0
    error = same = None
    ranks.gather_objects(None)
    try:
        started = time.perf_counter()
        with open(file, "wb") as stream:
            for _ in range(blocks):
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        written = time.perf_counter() - started
        with open(file, "rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            same = all(stream.read(_BLOCK) == data for _ in range(blocks))
        read = time.perf_counter() - started
    except OSError as failure:
        error = failure.strerror or str(failure)
    with suppress(
        OSError
    ):  # where nothing could be written, there is nothing to remove
        file.unlink(missing_ok=True)
    took = ranks.gather_objects((written, read))
    if error is not None:
        remedy = "make room, mend the quota or the permissions"
        yield broken("disk speed", f"cannot write in {place}: {error}", remedy)
        return
    if not same:
        remedy = "this file system loses bytes: use another one"
        yield broken("disk speed", "what was read is not what was written", remedy)
        return
    size = blocks * _BLOCK * len(took)
    rates = [size / max(*times, 1e-9) for times in zip(*took, strict=True)]
    words = f"{rates[0] / 1e6:,.0f} MB/s written and flushed, {rates[1] / 1e6:,.0f} MB/s read"
    words += f" by {len(took)} rank{'s' * (len(took) > 1)}"
    save = needed_gib * _GIB / rates[0]
    if rates[0] < _SLOW_BYTES and save > _LONG_SAVE:
        remedy = "use a faster file system, or save less often"
        yield weak("disk speed", words, remedy)
    else:
        yield good("disk speed", words)


def room(place: Path, needed_gib: float) -> Finding:
    """Free space against what the run needs; quotas are not seen."""
    free = shutil.disk_usage(place).free / _GIB
    words = f"{free:,.0f} GiB free"
    if not needed_gib:
        return good("room", words)
    words += f", the run's checkpoints need {needed_gib:,.1f}"
    remedy = "make room, or keep fewer (checkpoint.keep_last, keep_every)"
    return good("room", words) if free > needed_gib else broken("room", words, remedy)
