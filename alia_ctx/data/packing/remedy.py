"""The command that makes a plan anew, as messages say it."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_for(directory: Path) -> str:
    """The command that packs a stage, as a shell reads it."""
    return f"alia-ctx pack CONFIG --stage {shlex.quote(directory.name)}"
