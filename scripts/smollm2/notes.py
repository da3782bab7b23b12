"""Small JSON files in which a start of the recipe states what later ones must know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alia_ctx.errors import DataError
from alia_ctx.files import read_object


def read_note(file: Path, kinds: Mapping[str, type], remedy: str) -> dict[str, Any]:
    """The object in `file`, whose values are of `kinds`; DataError with the remedy where it
    is none.
    """
    try:
        note = read_object(file)
        for name, kind in kinds.items():
            if not isinstance(note[name], kind):
                raise ValueError(f"{name} is {note[name]!r}")
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{file}: is damaged ({type(error).__name__}: {error}); {remedy}"
        ) from error
    return note
