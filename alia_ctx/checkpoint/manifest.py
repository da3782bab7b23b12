"""What a checkpoint says of itself: model, RoPE, ledger, the checksum of every file, and
a checksum of each of these statements.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alia_ctx.errors import CheckpointError
from alia_ctx.files import checksum, parse_json
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

MANIFEST = "manifest.json"
IMPORT = "import"  # the stage that an import calls its checkpoint
CHECKPOINT_NAME = re.compile(r"update-(\d{8})")
# Version 1 (release 0.1) had no statement: such manifests load with nothing to check.
FORMAT_VERSION = 2
_READABLE = (1, FORMAT_VERSION)
_STATEMENT = "statement"


class DamagedError(CheckpointError):
    """What was read differs from what the checkpoint says of itself."""


class UnreadableError(CheckpointError):
    """Something could not be read, or not alike on all ranks: no proof of damage."""


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

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> StageLedger:
        """Rebuild an entry from its fields; KeyError or TypeError where they are others."""
        return cls(**{**entry, "rope": RopeSpec(**entry["rope"])})


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    `ledger` has one entry a stage, the oldest first; the last one is current, but of an
    import, which has the stages that its base was trained in, where that states them.
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

    @property
    def is_import(self) -> bool:
        """Whether its weights are as they were imported."""
        return self.stage == IMPORT

    def to_json(self) -> dict[str, Any]:
        """The document of the file: all fields, and `statement`, a checksum of each."""
        fields = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        document = json.loads(json.dumps(fields))
        return {**document, _STATEMENT: _statement(document)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: Path) -> Manifest:
        """Rebuild a manifest.

        Raises CheckpointError naming the file where it is of another format, and
        DamagedError naming the fields that were changed after it was written.
        """
        if not isinstance(document, Mapping):
            raise DamagedError(f"{where}: not a checkpoint manifest; {_RESTORE}")
        version = document.get("format_version")
        if version not in _READABLE:
            raise CheckpointError(
                f"{where}: format_version is {version}, this release reads "
                f"{' and '.join(map(str, _READABLE))}; use the release that wrote it to "
                "export, then import again"
            )
        _check_statement(document, where)
        values = {
            k: v for k, v in document.items() if k not in ("format_version", _STATEMENT)
        }
        try:
            values["model"] = ModelSpec(**values["model"])
            values["rope"] = RopeSpec(**values["rope"])
            values["ledger"] = tuple(
                StageLedger.from_json(entry) for entry in values["ledger"]
            )
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise DamagedError(
                f"{where}: not a checkpoint manifest ({error}); {_RESTORE}"
            ) from error


_RESTORE = "restore the file from a copy, or use another checkpoint"


def _statement(document: Mapping[str, Any]) -> dict[str, str]:
    """Field -> checksum of its value as JSON in one spelling."""
    return {
        name: checksum(
            json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        )
        for name, value in document.items()
        if name != _STATEMENT
    }


def _check_statement(document: Mapping[str, Any], where: Path) -> None:
    """Each field against its checksum, so that the message can name what was edited."""
    if document["format_version"] == 1 and _STATEMENT not in document:
        return
    stated = document.get(_STATEMENT)
    if not isinstance(stated, Mapping):
        raise DamagedError(f"{where}: its checksums are missing; {_RESTORE}")
    found = _statement(document)
    changed = sorted(
        name for name in {*stated, *found} if stated.get(name) != found.get(name)
    )
    if changed:
        raise DamagedError(
            f"{where}: {', '.join(changed)} changed after the file was written; "
            f"{_RESTORE} (a stage takes its settings from the configuration, so a "
            "manifest is never edited)"
        )


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`, its own checksums compared.

    Raises DamagedError where the file is missing, broken or edited, or of another update
    than a name like `update-00000100` says; UnreadableError
    where the file system refuses it, CheckpointError where there is no checkpoint.
    """
    where = path / MANIFEST
    try:
        manifest = Manifest.from_json(parse_json(where.read_bytes()), where)
    except FileNotFoundError:
        if not path.is_dir():
            raise CheckpointError(
                f"{where}: there is no such directory; expected what `train` or "
                "`import-hf` wrote"
            ) from None
        raise DamagedError(
            f"{where}: missing, the directory is not a checkpoint; expected what "
            "`train` or `import-hf` wrote"
        ) from None
    except OSError as error:
        raise UnreadableError(
            f"{where}: cannot be read ({error.strerror or error})"
        ) from error
    except ValueError as error:
        raise DamagedError(
            f"{where}: is no JSON that can be read ({error}); use another checkpoint"
        ) from error
    named = CHECKPOINT_NAME.fullmatch(path.name)
    if named and int(named[1]) != manifest.update:
        raise DamagedError(
            f"{path}: is of update {manifest.update}, whatever its name says; give it "
            "its own name, or move it away"
        )
    return manifest
