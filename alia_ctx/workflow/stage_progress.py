"""How far a stage is: what its log says, held against its checkpoints and against what it
is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.run import RunConfig
from alia_ctx.config.schema import build_parts
from alia_ctx.errors import AliaError, Problems
from alia_ctx.report.screen import WatchedStage
from alia_ctx.train.run_directory import RunDirectory
from alia_ctx.train.stage_identity import PLANNED

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Progress:
    """Where a stage stands.

    lines: those of the log that are of it, in order; updates that were given up when it
        was asked for fewer are not.
    updates: to its end; None where nothing says it.
    saved: updates that the newest checkpoint has; None without one.
    """

    lines: Lines
    updates: int | None
    saved: int | None

    @property
    def logged(self) -> int:
        """The last update of the log; 0 for none."""
        return int(self.lines[-1]["update"]) if self.lines else 0


def progress(
    places: RunDirectory,
    name: str,
    lines: Lines,
    asked: int | None,
    *,
    is_queued: bool = False,
) -> Progress:
    """Where stage `name` stands by all `lines` of its log, asked for so many updates.

    A log that goes on beyond the end that is asked for is of a stage whose `tokens` were
    raised elsewhere, as by an override, where it is at work or `is_queued`, or a checkpoint
    is beyond that end too. Else it was asked for fewer since: it is at its end where a
    checkpoint has as many, and training writes the lines beyond anew. Where not even its
    checkpoint was to come that far, it is not known what it was asked for.
    """
    manifest = _newest(places, name)
    saved = manifest.update if manifest is not None else None
    last = int(lines[-1]["update"]) if lines else 0
    if asked is None or max(last, saved or 0) <= asked:
        return Progress(lines, asked, saved)
    then = _updates_of(manifest)
    if then is None or last > then:
        return Progress(lines, None, saved)
    if is_queued or (saved or 0) > asked or _is_at_work(places, name, lines):
        return Progress(lines, then, saved)
    kept = [line for line in lines if line["update"] <= asked]
    return Progress(kept, asked, saved)


def _newest(places: RunDirectory, name: str) -> Manifest | None:
    newest = checkpoint.latest(places.checkpoints(name))
    with suppress(AliaError):  # who shows the checkpoint says what is wrong with it
        return checkpoint.read_manifest(newest) if newest is not None else None
    return None


def _updates_of(manifest: Manifest | None) -> int | None:
    """Updates to the end of a stage, as it was when its checkpoint was made."""
    if manifest is None:
        return None
    with suppress(AliaError, LookupError, TypeError, ValueError):
        if PLANNED in manifest.extra:
            return int(manifest.extra[PLANNED]["updates"])
        parts = build_parts(RunConfig, dict(manifest.config), Problems())
        return RunConfig(**parts).stage(manifest.stage).updates
    return None


def _is_at_work(places: RunDirectory, name: str, lines: Lines) -> bool:
    """Whether a process may be training the stage: its lock is there, which one that is
    killed leaves behind, and its last line is not long ago.
    """
    folder = places.stage(name)
    locked = folder.with_name(f".{folder.name}.lock").exists()
    return locked and not WatchedStage("", name, lines).is_silent(datetime.now(UTC))
