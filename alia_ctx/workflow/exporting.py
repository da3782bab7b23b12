"""The Hugging Face directories of a run's stages, each with a note of what it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.config.run import RunConfig
from alia_ctx.files import file_fingerprint, write_json
from alia_ctx.identity import differences, sealed, statement, unsealed
from alia_ctx.progress import say
from alia_ctx.train.stage_identity import checkpoint_statement
from alia_ctx.workflow.chain import finished_checkpoint, run_directory
from alia_ctx.workflow.reading import read_json


def export(run: RunConfig, name: str) -> Path:
    """The last checkpoint of a finished stage as a Hugging Face directory.

    One that is there is left as it is where it was made from that very checkpoint and
    tokenizer, and is whole; otherwise what differs is said, and it is made anew.
    IdentityError where something is there that no export of ours began: it is not
    removed.
    """
    from alia_ctx.hf import convert

    path, directory = finished_checkpoint(run, name), run_directory(run).hf(name)
    note = run_directory(run).hf_note(name)
    made_from = _made_from(run, path)
    if directory.exists():
        reasons = _what_differs(directory, note, made_from)
        if not reasons:
            return directory
        say(f"{directory} is made anew:\n  " + "\n  ".join(reasons))
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Before and after: an export that is killed in between is known for ours.
    write_json(note, sealed(made_from, {"files": None}))
    convert.export_hf(
        path,
        directory,
        tokenizer_dir=Path(run.tokenizer),
        overwrite=directory.exists(),
    )
    write_json(note, sealed(made_from, {"files": _sizes(directory)}))
    say(f"{name}: exported to {directory}")
    return directory


def _made_from(run: RunConfig, path: Path) -> dict[str, Any]:
    from alia_ctx.hf.assets import TOKENIZER_FILES

    files = [Path(run.tokenizer, name) for name in TOKENIZER_FILES]
    tokenizer = {f.name: file_fingerprint(f) for f in files if f.is_file()}
    manifest = checkpoint.read_manifest(path)
    made_from = {
        "checkpoint": checkpoint_statement(manifest),
        "tokenizer": tokenizer,
    }
    return dict(statement(made_from))


def _what_differs(directory: Path, note: Path, made_from: dict[str, Any]) -> list[str]:
    if directory.is_dir() and not any(directory.iterdir()):
        return ["it is empty"]
    remedy = (
        f"move {directory} away, or remove it, and run `alia-ctx run CONFIG` again, "
        "which makes it anew"
    )
    document = read_json(note, f"the export {directory}", remedy)
    before, content = unsealed(document, f"the export {directory}", remedy)
    reasons = differences(before, made_from)
    if content["files"] is None:
        return [*reasons, "making it was not finished"]
    return reasons + differences(content["files"], _sizes(directory))


def _sizes(directory: Path) -> dict[str, int]:
    """Bytes of the files that hold the model; the others are its owner's to edit."""
    return {
        path.name: path.stat().st_size
        for path in sorted(directory.iterdir())
        if path.suffix == ".safetensors" or path.name == "config.json"
    }
