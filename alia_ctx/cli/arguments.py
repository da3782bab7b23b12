"""Types of arguments that several commands share."""

from __future__ import annotations

import math
import os
from pathlib import Path

import typer


def path(text: str) -> Path:
    """A path with `~` written out: a shell does so for `~/x`, not for `--option=~/x`.

    Called as it is shown in `--help`: <path>.
    """
    expanded = os.path.expanduser(text)  # a Path forgets the `./` of `./~x`
    if expanded.startswith("~"):
        raise typer.BadParameter(
            f"{text}: there is no such home directory; write the path out, or ./{text} "
            "for a file of that name"
        )
    return Path(expanded)


def finite(value: float) -> float:
    """A number that is one: options of type float take `inf` and `nan` too."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value
