"""The import and export of the golden figures, in a file of its own:

it follows the converter's interface.
"""

from __future__ import annotations

from pathlib import Path


def round_trip(source: Path, checkpoint: Path, target: Path) -> None:
    from alia_ctx.hf import convert

    convert.import_hf(source, checkpoint)
    convert.export_hf(checkpoint, target)
