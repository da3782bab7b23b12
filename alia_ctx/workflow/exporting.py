"""The Hugging Face directories of a run's stages, each with a note of what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.files import checksum, file_checksum, file_fingerprint, write_json
from alia_ctx.hf.targets import foreign_in_export
from alia_ctx.identity import IdentityError, differences, sealed, statement, unsealed
from alia_ctx.progress import say
from alia_ctx.train.run_directory import RunDirectory, mended_by_training
from alia_ctx.train.stage_identity import checkpoint_statement
from alia_ctx.workflow.chain import (
    finished_checkpoint,
    run_directory,
)
from alia_ctx.workflow.reading import read_json

_MEASURED = "measured"  # in the note: a checksum of the card's evaluation


def export(run: RunConfig, name: str, measured: str | None = None) -> Path:
    """The last checkpoint of a finished stage as a Hugging Face directory, with what was
    `measured` of it, as Markdown, in its card; None: that does not matter.

    One that is there is left as it is where it was made from that very checkpoint,
    tokenizer and text, and is whole; otherwise what differs is said, and it is made anew.
    CheckpointError, with nothing removed, where it holds what no conversion wrote, or
    what was changed since.
    """
    from alia_ctx.hf import convert

    path, directory = finished_checkpoint(run, name), run_directory(run).hf(name)
    note = run_directory(run).hf_note(name)
    made_from = _made_from(run, path, measured)
    if _is_there(directory):
        reasons = _what_differs(directory, note, made_from)
        if not reasons:
            return directory
        say(f"{directory} is made anew:\n  " + "\n  ".join(reasons))
    directory.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = Path(run.tokenizer)
    with mended_by_training(name):
        convert.export_hf(
            path,
            directory,
            tokenizer_dir=tokenizer,
            evaluation=measured or "",
            overwrite=True,
        )
    write_json(note, sealed(made_from, _content(directory)))
    say(f"{name}: exported to {directory}")
    return directory


def needs_export(run: RunConfig, name: str, measured: str | None = None) -> bool:
    """Whether `export` would read the checkpoint: there is no export, or another."""
    directory = run_directory(run).hf(name)
    made_from = _made_from(run, finished_checkpoint(run, name), measured)
    return not _is_there(directory) or bool(
        _what_differs(directory, run_directory(run).hf_note(name), made_from)
    )


@dataclass(frozen=True)
class Exports:
    """Directories below OUTPUT/hf: `files`, the config.json of each that is of a checkpoint
    which is there; of the others a sentence each. `stale` are those of stages, `unknown`
    those that somebody put there.
    """

    files: list[str]
    stale: list[str]
    unknown: list[str]


def exports_there(root: Path, statements: Mapping[str, Any]) -> Exports:
    """What lies below `root`/hf, compared with `statements`, the `checkpoint_statement` of
    what each stage has now, in the order of the stages. Weights are compared by size.
    """
    places, found = RunDirectory(root), Exports([], [], [])
    for file in sorted((root / "hf").glob("*/config.json")):
        directory = file.parent
        note = places.hf_note(directory.name)
        reasons, how = _of_another_by_itself(directory, places), "move it away"
        others = found.unknown
        # An export that was made anew by hand is right, whatever the note says.
        if reasons and note.is_file():
            reasons = _of_another(directory, note, statements.get(directory.name))
            how = "move it away, or export it anew: `alia-ctx export-hf`, with --overwrite"
            if directory.name in list(statements)[-1:]:
                how = "`alia-ctx run CONFIG` makes it anew"
            others = found.stale
        if not reasons:
            found.files.append(str(file))
            continue
        others.append(
            f"the export {directory} is not shown, it is not of the model that is there "
            f"now: {'; '.join(reasons[:3])}. To have it right, {how}."
        )
    return found


def _of_another(directory: Path, note: Path, now: Any) -> list[str]:
    """How the checkpoint that the note of an export names differs from the one that is there
    `now`, and the export from what was written.
    """
    artefact = f"the export {directory}"
    try:
        before, content = unsealed(read_json(note, artefact, ""), artefact, "")
        then = before["checkpoint"]
    except IdentityError as error:
        return list(error.differences)
    except (DataError, KeyError, TypeError) as error:
        return [f"{note} says not what it was made from ({error})"]
    if now is None:
        return [f"there is no checkpoint of {directory.name} here"]
    return differences(then, now) + differences(content, _content(directory))


def _of_another_by_itself(directory: Path, places: RunDirectory) -> list[str]:
    """As `_of_another`, of an export that was put there: by its own statement."""
    from alia_ctx.hf.targets import read_statement

    try:
        statement = read_statement(directory)
        if foreign := foreign_in_export(directory, largest=0):
            return [foreign]
        stated = statement["made_from"]
        path = places.checkpoints(stated["stage"]) / stated["checkpoint"]
        manifest = path / checkpoint.MANIFEST
        if not manifest.is_file():
            return [f"it was made from {path}, which is not there"]
        if file_checksum(manifest) != stated["manifest"]:
            return [f"it was made from another {path} than is there"]
    except (CheckpointError, KeyError, TypeError) as error:
        return [f"it says not what it was made from ({error})"]
    return []


def _is_there(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _made_from(run: RunConfig, path: Path, measured: str | None) -> dict[str, Any]:
    from alia_ctx.hf.assets import tokenizer_assets

    directory = Path(run.tokenizer)
    files = [directory / name for name in tokenizer_assets(directory)]
    tokenizer = {f.name: file_fingerprint(f) for f in files if f.is_file()}
    manifest = checkpoint.read_manifest(path)
    made_from: dict[str, Any] = {
        "checkpoint": checkpoint_statement(manifest),
        "tokenizer": tokenizer,
    }
    if measured is not None:
        made_from[_MEASURED] = checksum(measured.encode())
    return dict(statement(made_from))


def _what_differs(directory: Path, note: Path, made_from: dict[str, Any]) -> list[str]:
    artefact, remedy = f"the export {directory}", "run `alia-ctx run CONFIG` again"
    try:
        document = read_json(note, artefact, remedy)
        before, content = unsealed(document, artefact, remedy)
    except IdentityError as error:
        return list(error.differences)
    if _MEASURED not in made_from:
        before = {key: value for key, value in before.items() if key != _MEASURED}
    reasons = differences(before, made_from) + differences(content, _content(directory))
    # Sizes are quick to compare and say little: bytes decide.
    changed = None if reasons else foreign_in_export(directory)
    return [*reasons, changed] if changed else reasons


def _content(directory: Path) -> dict[str, Any]:
    """What tells an export from another: what the conversion says that it wrote, and
    the sizes of the files that hold the model. The others are its owner's to edit.
    """
    from alia_ctx.hf.targets import STATEMENT

    files = {
        path.name: path.stat().st_size
        for path in sorted(directory.iterdir())
        if path.suffix == ".safetensors" or path.name == "config.json"
    }
    written = directory / STATEMENT
    return {
        "written": file_fingerprint(written) if written.is_file() else "nothing",
        "files": files,
    }
