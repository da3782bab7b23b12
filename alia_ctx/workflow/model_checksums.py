"""Which weights a Hugging Face directory holds, by all of their bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alia_ctx.checkpoint.opening import Ranks
from alia_ctx.files import file_checksum
from alia_ctx.hf.source_weights import weight_paths
from alia_ctx.progress import say

# (path, bytes, moment of the last write) -> checksum. What was written since has another.
_Key = tuple[str, int, int]
_known: dict[_Key, str] = {}
_AT_ONCE = 8  # files: a parallel file system gives more to several readers
_WORTH_SAYING = 4 << 30  # bytes


def model_checksums(path: Path) -> dict[str, str]:
    """xxh3_128 of each file that makes the model: configuration, weights, and the index
    that says which of them they are.

    All bytes are read, once a process: a norm that was mended in place is some kilobytes
    of a file of gigabytes, which no sample of it shows.
    """
    files = sorted([path / "config.json", *weight_paths(path)])
    keys = [_key(file) for file in files]
    new = {
        key: file for key, file in zip(keys, files, strict=True) if key not in _known
    }
    size = sum(bytes_ for _, bytes_, _ in new)
    if size > _WORTH_SAYING:
        say(f"{path}: reading {size / 1e9:,.0f} GB, to know these weights from others")
    with ThreadPoolExecutor(_AT_ONCE) as readers:
        _known.update(zip(new, readers.map(file_checksum, new.values()), strict=True))
    return {file.name: _known[key] for file, key in zip(files, keys, strict=True)}


def share_checksums(ranks: Ranks) -> None:
    """What the first rank has read, for the others: ranks of one start need not all read
    the weights. Collective. One that sees files of another size or moment reads its own.
    """
    own = [[*key, value] for key, value in _known.items()] if ranks.rank == 0 else []
    for path, size, moment, value in ranks.gather_objects(own)[0]:
        _known.setdefault((path, size, moment), value)


def _key(file: Path) -> _Key:
    there = file.stat()
    return str(file.resolve()), there.st_size, there.st_mtime_ns
