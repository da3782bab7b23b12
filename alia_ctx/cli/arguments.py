"""Types of arguments that several commands share."""

from __future__ import annotations

from pathlib import Path

import typer


def path(text: str) -> Path:
    """A path with `~` written out: a shell does so for `~/x`, not for `--option=~/x`.

    Called as it is shown in `--help`: <path>.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise typer.BadParameter(
            f"{text}: there is no such home directory; write the path out"
        ) from error
