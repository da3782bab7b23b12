"""What a checkpoint says of itself: model, RoPE, ledger, and the checksum of every file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alia_ctx.errors import CheckpointError
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

MANIFEST = "manifest.json"


FORMAT_VERSION = 1


@dataclass(frozen=True)
class StageLedger:
    """What one stage has consumed so far.

    Tokens are real ones: fill at the end of a row is never counted.
    """

    stage: str
    context: int
    rope: RopeSpec
    learning_rate: float
    updates: int = 0
    skipped_updates: int = 0
    rows: int = 0
    tokens: int = 0
    predicted_tokens: int = 0
    plan: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    `ledger` has one entry a stage, the oldest first; the last one is current.
    """

    stage: str
    update: int
    model: ModelSpec
    rope: RopeSpec
    context: int
    ledger: tuple[StageLedger, ...] = ()
    has_optimizer: bool = False
    parent: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: Path) -> Manifest:
        """Rebuild a manifest; CheckpointError names the file where it is of another format."""
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where}: format_version is {version}, this release reads {FORMAT_VERSION}; "
                "use the release that wrote it to export, then import again"
            )
        values = {k: v for k, v in document.items() if k != "format_version"}
        try:
            values["model"] = ModelSpec(**values["model"])
            values["rope"] = RopeSpec(**values["rope"])
            values["ledger"] = tuple(
                StageLedger(**{**entry, "rope": RopeSpec(**entry["rope"])})
                for entry in values["ledger"]
            )
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{where}: not a checkpoint manifest ({error}); restore it from a copy"
            ) from error


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`; CheckpointError where it is none."""
    where = path / MANIFEST
    try:
        document = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = (
            "the directory is not a checkpoint"
            if path.is_dir()
            else "there is no such directory"
        )
        raise CheckpointError(
            f"{where}: {hint}; expected what `train` or `import-hf` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{where}: cannot be read ({error}); use an older checkpoint"
        ) from error
    return Manifest.from_json(document, where)
