"""What can befall a start of a stage, for `benchmarks/chaos.py`.

Each class is called on every rank before the command begins; each function of DAMAGES
spoils a checkpoint that lies there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkpoint.test_opening import failing

_LASTING = contextlib.ExitStack()  # what lasts as long as the process


@dataclass(frozen=True)
class Kill:
    """The kernel ends `ranks` after `seconds`, without a word: a timer whose signal
    nobody handles. All at the same time, wherever they are.
    """

    seconds: float
    ranks: tuple[int, ...]

    def __call__(self, rank: int) -> None:
        if rank in self.ranks:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)


@dataclass(frozen=True)
class StopAfter:
    """SIGUSR1, as SLURM sends it, meets rank 0 in the nth update of the start."""

    updates: int

    def __call__(self, rank: int) -> None:
        def signalled(update: int) -> None:
            if update == self.updates and rank == 0:
                os.kill(os.getpid(), signal.SIGUSR1)

        _before_updates(signalled)


@dataclass(frozen=True)
class Slow:
    """Each update waits for `seconds` first."""

    seconds: float

    def __call__(self, rank: int) -> None:
        _before_updates(lambda update: time.sleep(self.seconds))


def _before_updates(action: Callable[[int], None]) -> None:
    from alia_ctx.mcore.engine import MegatronEngine

    original, calls = MegatronEngine.train_update, [0]

    def train_update(engine: Any, *arguments: Any) -> Any:
        calls[0] += 1
        action(calls[0])
        return original(engine, *arguments)

    MegatronEngine.train_update = train_update  # type: ignore[method-assign]


@dataclass(frozen=True)
class Vanish:
    """`rank` alone does not see what lies below `place`: a file system of its own is
    mounted over it (`fault` is "mount"), or each look meets the errno `fault`.
    """

    place: Path
    rank: int
    fault: str

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        if self.fault == "mount":
            os.unshare(os.CLONE_NEWNS)
            mount_tmpfs(self.place)
        else:
            _LASTING.enter_context(failing(self.place, self.fault))


@dataclass(frozen=True)
class NoSpace:
    """`rank` can make no directory below `place` the first `times` times."""

    place: Path
    rank: int
    times: int

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        original, left = Path.mkdir, [self.times]

        def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
            if path.is_relative_to(self.place) and path != self.place and left[0]:
                left[0] -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            original(path, *arguments, **options)

        Path.mkdir = mkdir  # type: ignore[method-assign]


# -- mounts ----------------------------------------------------------------------------


def can_mount() -> bool:
    """Whether `unshare -rm` gives a name space in which a tmpfs can be mounted."""
    attempt = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(attempt, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def mount_tmpfs(place: Path, options: str = "size=100m") -> None:
    """Mount an empty file system over a directory, in this process's name space."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)


# -- damage ----------------------------------------------------------------------------


def _any_file(path: Path, draw: random.Random) -> Path:
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    return draw.choice(sorted(files))


def _flip(path: Path, draw: random.Random) -> str:
    file = _any_file(path, draw)
    data = bytearray(file.read_bytes())
    # In the manifest a flip may fall on a space; the middle of a checksum is none.
    place = (
        data.rindex(b'"xxh3_128": "') + 20
        if file.name == "manifest.json"
        else draw.randrange(len(data))
    )
    data[place] ^= 1
    file.write_bytes(data)
    return f"a bit of {file.name} flipped"


def _cut(path: Path, draw: random.Random) -> str:
    file = _any_file(path, draw)
    size = draw.randrange(file.stat().st_size - 1)
    os.truncate(file, size)
    return f"{file.name} cut to {size} bytes"


def _remove(path: Path, draw: random.Random) -> str:
    file = _any_file(path, draw)
    file.unlink()
    return f"{file.name} removed"


def _edit(path: Path, draw: random.Random) -> str:
    manifest = path / "manifest.json"
    document = json.loads(manifest.read_text())
    key = draw.choice(sorted(document))
    document[key] = "edited"
    manifest.write_text(json.dumps(document))
    return f"manifest.json: {key} edited"


def _add(path: Path, draw: random.Random) -> str:
    (path / "state/__9_0.distcp").write_bytes(draw.randbytes(64))
    return "a file added"


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    _flip,
    _cut,
    _remove,
    _edit,
    _add,
)
