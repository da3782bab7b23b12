"""Files that are whole or absent:

atomic writes, checksums, and a quick fingerprint of big files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import xxhash

_WHOLE_BYTES = 64 << 20
_WINDOWS = 256


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


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as indented JSON with sorted keys, so that equal values
    are equal bytes.
    """
    with atomic_file(path) as stream:
        stream.write(
            json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode()
            + b"\n"
        )


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
