"""The JSON files of a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alia_ctx.errors import CheckpointError


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError where it is missing or is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: there is no such file; give a directory saved by `save_pretrained`"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}); copy it again from its source"
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{path}: holds {type(document).__name__} instead of a JSON object"
        )
    return document
