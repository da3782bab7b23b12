"""The tokenizer that an export has: the one of training, or of the model imported."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from alia_ctx.checkpoint.directory import ASSETS
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.data.tokens.tokenizer_files import (
    has_vocabulary,
    known_tokenizer,
    tokenizer_statement,
)
from alia_ctx.errors import CheckpointError
from alia_ctx.hf import assets, special_ids
from alia_ctx.hf.config import CONFIG
from alia_ctx.identity import require_same


def export_tokenizer(ckpt_dir: Path, manifest: Manifest, given: Path | None) -> Path:
    """The directory to take the tokenizer from: `given`, else the one of training, else
    the one that was imported.

    Raises CheckpointError: there is none, or it is another than that of training.
    """
    training = stated_tokenizer(manifest)
    source = given or training
    if source is None:
        return ckpt_dir / ASSETS
    if not has_vocabulary(source):
        raise CheckpointError(
            f"{source}: holds no tokenizer; give a directory with tokenizer.json or "
            "tokenizer.model"
            if given
            else f"{source}: the tokenizer that the checkpoint was trained with is not "
            "here; say where it is with --tokenizer DIR"
        )
    if (stated := known_tokenizer(manifest.extra)) is not None:
        require_same(
            stated,
            tokenizer_statement(source),
            f"the tokenizer in {source}, for {ckpt_dir},",
            "restore the files that the model was trained with, or say where they "
            "are with --tokenizer DIR",
        )
    elif given is not None:
        _require_same_ids(given, ckpt_dir / ASSETS, training, manifest)
    return source


def stated_tokenizer(manifest: Manifest) -> Path | None:
    """The tokenizer directory that a checkpoint's run was trained with, if it says so."""
    stated = manifest.config.get("tokenizer")
    return Path(stated) if isinstance(stated, str) else None


def _require_same_ids(
    given: Path, imported: Path, training: Path | None, manifest: Manifest
) -> None:
    """Refuse a tokenizer that gives other ids than the one of `training`, or, where no
    training names one, than the one `imported`, which may have got tokens since.
    """
    base = training or imported
    if base.resolve() == given.resolve() or not has_vocabulary(base):
        return
    if training is not None:
        what, remedy = "the tokenizer of training", "export with the latter"
        problems = special_ids.differences(
            special_ids.read_tokenizer(given), special_ids.read_tokenizer(training)
        )
    else:
        what = "the tokenizer that was imported"
        remedy = "leave --tokenizer out, or name one that has tokens more at most"
        problems = _moved_ids(given, imported, manifest.model.architecture)
    if problems:
        raise CheckpointError(
            f"{given} is not {what}, {base}: {'; '.join(problems)}; {remedy}"
        )


def _moved_ids(given: Path, imported: Path, model_type: str) -> list[str]:
    """In what `given` moves ids of the tokenizer `imported`, both read beside the
    config.json that was: for some architectures it decides the class.
    """
    try:
        base = special_ids.read_tokenizer(imported, model_type=model_type)
    except CheckpointError:
        return []  # one that does not load is a reason to give another
    with TemporaryDirectory() as name:
        beside = Path(name)
        assets.copy_assets(imported, beside, [CONFIG])
        assets.copy_assets(given, beside, assets.tokenizer_assets(given))
        return special_ids.moved_ids(
            special_ids.read_tokenizer(beside, given, model_type), base
        )
