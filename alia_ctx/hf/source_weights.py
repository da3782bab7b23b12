"""Which weights an import was made from, and whether a directory still holds them.

Two models of one family and size differ in nothing but the values of their weights, so
those are compared: a checksum of each tensor, however it is stored in files. Size and
time of the files, where they lie where they lay, spare the reading.

Nothing here needs torch until weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from alia_ctx.errors import CheckpointError
from alia_ctx.progress import say

if TYPE_CHECKING:
    from alia_ctx.checkpoint.tensor_files import TensorPlace
    from alia_ctx.hf.ranks import Ranks

SOURCE_WEIGHTS = "source_weights"  # in the `config` of an import's manifest
_SIGNS = ("*.safetensors", "*.bin", "*.index.json")
_AT_ONCE = 4  # tensors: a parallel file system gives more to several readers
_BLOCK_BYTES = 4 << 20
_WORTH_SAYING = 4 << 30  # bytes


def weights_statement(
    hf_dir: Path, places: Mapping[str, TensorPlace], ranks: Ranks
) -> dict[str, Any]:
    """What the manifest of an import from `hf_dir` says of the weights at `places`:
    `directory`; `files`, each with path, bytes and time of the last write in ns;
    `tensors`, name -> xxh3_128 of the bytes. The ranks share the reading. Collective.
    """
    files, names = _files(hf_dir), sorted(places)

    def share() -> dict[str, str]:
        own = names[ranks.rank :: ranks.size]
        with ThreadPoolExecutor(_AT_ONCE) as readers:
            found = readers.map(_checksum, [places[name] for name in own])
            return dict(zip(own, found, strict=True))

    tensors = {name: sum_ for part in ranks.all(share) for name, sum_ in part.items()}
    return {"directory": str(hf_dir.resolve()), "files": files, "tensors": tensors}


def other_weight(stated: Mapping[str, Any], hf_dir: Path) -> str | None:
    """The name of a tensor that `hf_dir` has with other values than `stated`, or lacks;
    None where there is none, and where `hf_dir` holds no weights that could be compared.

    All bytes are read unless the files are those of the import, by path, size and time;
    reading ends at the first tensor that is another. CheckpointError where a file cannot
    be read.
    """
    if _files(hf_dir) == stated["files"]:
        return None
    from alia_ctx.hf.weight_files import locate_weights

    try:
        places = locate_weights(hf_dir)
    except (CheckpointError, OSError):
        return None
    tensors: Mapping[str, str] = stated["tensors"]
    for name in tensors:
        if name not in places:
            return name
    size = sum(places[name].nbytes for name in tensors)
    if size > _WORTH_SAYING:
        say(
            f"{hf_dir}: reading up to {size / 1e9:,.0f} GB, to know these weights from "
            f"others; where hf_base is {stated['directory']} nothing is read again"
        )
    with ThreadPoolExecutor(_AT_ONCE) as readers:
        found = readers.map(_checksum, [places[name] for name in tensors])
        try:
            for (name, expected), checksum in zip(tensors.items(), found, strict=True):
                if checksum != expected:
                    return name
        finally:
            readers.shutdown(cancel_futures=True)
    return None


def weight_paths(hf_dir: Path) -> list[Path]:
    """What may hold weights in a directory, or says which file does, sorted."""
    return sorted({path for sign in _SIGNS for path in hf_dir.glob(sign)})


def _files(hf_dir: Path) -> list[Sequence[str | int]]:
    """Path, bytes and time of the last write of `weight_paths`; JSON's types."""
    found: list[Sequence[str | int]] = []
    for file in weight_paths(hf_dir):
        try:
            there = file.stat()
        except OSError:  # a link that leads nowhere
            continue
        found.append([str(file.resolve()), there.st_size, there.st_mtime_ns])
    return found


def _checksum(place: TensorPlace) -> str:
    digest, left = xxhash.xxh3_128(), place.nbytes
    try:
        with open(place.file, "rb") as stream:
            stream.seek(place.offset)
            while left and (block := stream.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        raise CheckpointError(
            f"{place.file}: cannot be read ({error.strerror or error}); see to that file "
            "system and start again"
        ) from error
    return digest.hexdigest()
