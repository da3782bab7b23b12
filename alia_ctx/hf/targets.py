"""The directory that a conversion writes: checked first, built under another name,
whole or absent, and only ever in the place of what we wrote ourselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import MANIFEST, Manifest
from alia_ctx.errors import CheckpointError
from alia_ctx.files import checksum, exclusive, file_checksum
from alia_ctx.hf.json_files import load_json, write_json

# `check` looks at targets, and needs no torch for it.
if TYPE_CHECKING:
    from alia_ctx.hf.ranks import Ranks

STATEMENT = "alia_ctx_export.json"
_FORMAT = 1


def check_target(
    target: Path, source: Path, overwrite: bool, foreign: Callable[[Path], str | None]
) -> None:
    """Raise CheckpointError where `target` cannot be written without losing something.

    `foreign(directory)` says what is in a directory that we did not write, or None.
    """
    if target.is_symlink():
        raise CheckpointError(
            f"{target} is a link to {target.resolve()}; give the directory itself"
        )
    inside, outside = target.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise CheckpointError(
            f"{target}: lies in the directory that is converted, or holds it; choose "
            "another one"
        )
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; choose another name")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise CheckpointError(
                f"{target} exists; remove it, choose another name, or allow overwriting"
            )
        if reason := foreign(target):
            raise CheckpointError(
                f"{target}: only what a conversion wrote is overwritten, and {reason}; "
                "move it away or choose another name"
            )
    neighbour = checkpoint.temporary_path(target)
    if neighbour.is_symlink() or not (
        not neighbour.exists()
        or (neighbour / checkpoint.INCOMPLETE).is_file()
        or checkpoint.was_begun(neighbour)
    ):
        raise CheckpointError(
            f"{neighbour}: is in the way, and nothing shows that a killed conversion left "
            "it; move it away or choose another name"
        )


@contextmanager
def building(target: Path, ranks: Ranks, begin: Callable[[], Path]) -> Iterator[Path]:
    """The temporary directory beside `target`, removed if the block fails;

    system errors name the target.
    """

    what = "alia-ctx import-hf or export-hf"
    with exclusive(
        target, what, rank=ranks.rank, gather=lambda error: ranks.all(lambda: error)
    ):
        temporary: Path | None = None
        try:
            temporary = Path(ranks.first(lambda: str(begin())))
            yield temporary
        except OSError as error:
            raise CheckpointError(
                f"{target}: cannot be written ({error.strerror or error}); free the "
                "space or choose another place"
            ) from error
        finally:
            if temporary is not None and ranks.rank == 0:
                # After a commit the name is gone and this does nothing.
                checkpoint.discard(temporary)


def finish_building(temporary: Path) -> None:
    """Take the mark of an unfinished export away; from here on it is whole."""
    checkpoint.seal(temporary, STATEMENT)


def begin_export(hf_dir: Path) -> Path:
    """Make the directory in which the export `hf_dir` is built, empty."""
    temporary = checkpoint.temporary_path(hf_dir)
    checkpoint.discard(temporary)
    temporary.mkdir(parents=True)
    checkpoint.record_begun(temporary)
    return temporary


def write_statement(
    directory: Path,
    made_from: Mapping[str, Any],
    settings: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]],
) -> None:
    """State beside an export what it was made from, how, and what it consists of.

    `known` are the entries (bytes, checksum) of files that were summed as they were
    written; the others are read.
    """
    files = {
        name: known.get(name) or checkpoint.file_entry(directory / name)
        for name in sorted(_names(directory) - {checkpoint.INCOMPLETE})
    }
    statement = {
        "format_version": _FORMAT,
        "made_from": dict(made_from),
        "settings": dict(settings),
        "files": files,
    }
    write_json(directory / STATEMENT, {**statement, "checksum": _sum(statement)})


def read_statement(directory: Path) -> dict[str, Any]:
    """The statement of an export; CheckpointError where it has none, or one that was
    changed.
    """
    statement = load_json(directory / STATEMENT)
    stated = statement.pop("checksum", None)
    if statement.get("format_version") != _FORMAT or stated != _sum(statement):
        raise CheckpointError(
            f"{directory / STATEMENT}: was changed, or is of another version; export again"
        )
    return statement


def foreign_in_export(directory: Path, largest: int | None = None) -> str | None:
    """What in `directory` is not as an export wrote it, or None. Of files of more than
    `largest` bytes only the sizes are compared, which takes no time.
    """
    if not (directory / STATEMENT).is_file():
        return f"it has no {STATEMENT}"
    try:
        files = read_statement(directory)["files"]
        return _first_foreign(directory, files, {STATEMENT}, largest)
    except CheckpointError as error:
        return str(error)


def foreign_in_import(directory: Path) -> str | None:
    """What in `directory` is not as an import wrote it, or None."""
    try:
        manifest: Manifest = checkpoint.read_manifest(directory)
    except CheckpointError as error:
        return str(error)
    if not manifest.is_import:
        return f"it is a checkpoint of stage {manifest.stage}, not an import"
    return _first_foreign(directory, manifest.files, {MANIFEST})


def _first_foreign(
    directory: Path,
    files: Mapping[str, Mapping[str, Any]],
    others: set[str],
    largest: int | None = None,
) -> str | None:
    names = _names(directory)
    for name in sorted(names - set(files) - others):
        return f"{name} was not written by it"
    for name in sorted(names & set(files)):
        file, entry = directory / name, files[name]
        if file.is_symlink():
            return f"{name} was replaced by a link"
        if not is_as_written(file, entry, largest):
            return f"{name} was changed since"
    return None


def is_as_written(
    file: Path, entry: Mapping[str, Any], largest: int | None = None
) -> bool:
    """Whether a file is as its `entry` in a statement says; of one of more than `largest`
    bytes only the size is compared.
    """
    size = file.stat().st_size
    if size != entry["bytes"]:
        return False
    is_large = largest is not None and size > largest
    return is_large or bool(file_checksum(file) == entry["xxh3_128"])


def _names(directory: Path) -> set[str]:
    """Files and links below `directory`, and directories that are empty."""
    return {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }


def _sum(statement: Mapping[str, Any]) -> str:
    return checksum(json.dumps(statement, sort_keys=True).encode())
