"""The training that an export states, so that an import of it goes on with what is known:
context, ledger, and what each stage was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alia_ctx.checkpoint.manifest import Manifest, StageLedger
from alia_ctx.checkpoint.trained_sources import (
    SOURCES,
    recorded_sources,
    recorded_stage,
    trained_sources,
)
from alia_ctx.errors import CheckpointError
from alia_ctx.files import file_checksum
from alia_ctx.hf.targets import STATEMENT, is_as_written, read_statement

# `check` looks at what is stated, and needs no torch for it.
if TYPE_CHECKING:
    from alia_ctx.hf.ranks import Ranks

_CONFIG = "config.json"
_CONTEXT, _LEDGER = "context", "ledger"


@dataclass(frozen=True)
class StatedTraining:
    """What an export states of its model.

    Args:
        context: tokens of its last stage. `max_position_embeddings` may be the original
            length, or YaRN's reach.
        ledger: of all stages, the oldest first.
        sources: what each was trained on, as `recorded_sources` has it.
    """

    context: int
    ledger: tuple[StageLedger, ...]
    sources: list[Any]


def statement_of_training(manifest: Manifest) -> dict[str, Any]:
    """What `stated_training` reads, as JSON."""
    return {
        _CONTEXT: manifest.context,
        _LEDGER: [dataclasses.asdict(entry) for entry in manifest.ledger],
        SOURCES: recorded_sources(trained_sources(manifest)),
    }


def changed_weights(
    directory: Path, files: Collection[Path], ranks: Ranks
) -> list[str]:
    """Names of those of the `files` of weights in an export that are not as it wrote them:
    what it states of its training is then not all that they had. The ranks share the
    reading. Collective. CheckpointError where there is no statement.
    """
    written, ordered = read_statement(directory)["files"], sorted(files)

    def share() -> list[str]:
        return [
            file.name
            for file in ordered[ranks.rank :: ranks.size]
            if file.name not in written or not is_as_written(file, written[file.name])
        ]

    return sorted(name for part in ranks.all(share) for name in part)


def stated_training(directory: Path) -> StatedTraining | None:
    """The training that an export of this project states; None where there is none, its
    statement is not as it was written, or its config.json was edited since and so
    describes another model. CheckpointError where another release wrote it otherwise.
    """
    try:
        statement = read_statement(directory)
    except CheckpointError:  # there is none, or it is not to be believed
        return None
    stated = statement["made_from"]
    written = statement["files"].get(_CONFIG, {}).get("xxh3_128")
    if written != file_checksum(directory / _CONFIG):
        return None
    if type(context := stated.get(_CONTEXT)) is not int:
        return None
    # An export of an earlier release states the context alone.
    entries, sources = stated.get(_LEDGER, []), stated.get(SOURCES, [])
    try:
        ledger = tuple(StageLedger.from_json(entry) for entry in entries)
        for _, stage in zip(ledger, sources, strict=True):
            recorded_stage(stage)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory / STATEMENT}: its ledger is of another release ({error}); take "
            "the release that wrote it, or take the file away and with it what is known "
            "of the training"
        ) from error
    return StatedTraining(context, ledger, sources)
