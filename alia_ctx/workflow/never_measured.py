"""What cannot be measured of a model, kept beside its results with what it was found for: so
long as that is the same, no evaluation needs to try again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alia_ctx.errors import AliaError
from alia_ctx.files import write_json
from alia_ctx.identity import differences, sealed, unsealed
from alia_ctx.workflow.reading import read_json

_REASON = "not_measured"


def keep_reason(result: Path, made_from: Mapping[str, Any], reason: str) -> None:
    """Note why there will be no `result`, the file that it would be in."""
    path = _beside(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, sealed(made_from, {_REASON: reason}))


def kept_reason(
    result: Path, made_from: Callable[[], Mapping[str, Any]]
) -> tuple[Mapping[str, Any], str] | None:
    """(what `result` would be made from now, why there is none); None where nothing is
    known against it.
    """
    path = _beside(result)
    if not path.is_file():
        return None
    try:
        before, content = unsealed(
            read_json(path, "why there is no result", ""), "", ""
        )
        now, reason = made_from(), str(content[_REASON])
    except (AliaError, KeyError, TypeError):  # it is tried again, and noted anew
        return None
    return None if differences(before, now) else (now, reason)


def _beside(result: Path) -> Path:
    """No `.json`: those of the folder are results."""
    return result.with_name(f"{result.stem}.not-measured")
