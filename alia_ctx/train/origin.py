"""Whether what a stage starts from is a model of the run's sizes and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.data.tokens import (
    TOKENIZER,
    changed_ids,
    has_vocabulary,
    known_tokenizer,
    tokenizer_statement,
)
from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.identity import IdentityError, differences
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.stage_identity import model_differences
from alia_ctx.train.task import StageTask


def require_same_model(path: Path, manifest: Manifest, model: ModelSpec) -> None:
    """CheckpointError where the checkpoint at `path` is of other sizes."""
    differing = model_differences(manifest.model, model)
    if differing:
        raise CheckpointError(f"{path} is of another model ({'; '.join(differing)})")


def require_same_tokenizer(
    task: StageTask, path: Path, manifest: Manifest
) -> str | None:
    """IdentityError where the checkpoint at `path` was trained with, or carries, a
    tokenizer that gives a text other ids than the configuration's: its embedding would
    be of other tokens than those of the text.

    Returns what a person should hear where nothing could be compared; None where it was.
    """
    given, now = task.config.get("tokenizer"), task.tokenizer or task.configured()
    if now is None or given is None:
        return None
    directory, stated = _tokenizer_of(path, manifest)
    if stated is not None and stated == now:
        return None
    if directory is None:
        if stated is None:
            return (
                f"{path} neither states nor carries a tokenizer: whether it is "
                f"{given} was not compared"
            )
        problems = differences(stated, now, TOKENIZER)
    elif not has_vocabulary(Path(given)):
        return f"{given} is not here: it was not compared with the tokenizer of {path}"
    else:
        try:
            problems = changed_ids(directory, Path(given), task.model.architecture)
        except DataError as error:
            return f"the tokenizer of {path} was not compared with {given}: {error}"
    if problems:
        known = directory or manifest.config.get("tokenizer") or "that of its training"
        raise IdentityError(
            f"stage {task.name} would start from {path}, whose tokenizer is another than "
            f"{given}",
            problems,
            f"set `tokenizer` to the checkpoint's, {known}, and make stores and plans anew "
            f"with it; or start stages.{task.name}.init_from from a model of this one",
        )
    return None


def _tokenizer_of(
    path: Path, manifest: Manifest
) -> tuple[Path | None, Mapping[str, str] | None]:
    """Where the tokenizer of a checkpoint is, if it is at hand as it was, and what the
    checkpoint states of it.
    """
    stated = known_tokenizer(manifest.extra)
    named, carried = manifest.config.get("tokenizer"), path / checkpoint.ASSETS
    for directory in ([Path(named)] if named else []) + [carried]:
        if not has_vocabulary(directory):
            continue
        if stated is None and directory != carried:
            continue  # nothing says that it is what it was in training
        if stated is None or tokenizer_statement(directory) == stated:
            return directory, stated
    return None, stated
