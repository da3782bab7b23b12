"""Whether a stage had checkpoints before, where its directory shows none: marks beside it say
so, and a stage never begins anew unasked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alia_ctx.errors import CheckpointError


def _markers(root: Path) -> tuple[Path, Path]:
    """Beside the directory, and beside that of its stage, either of which may be a link or
    a mount: they say that a checkpoint was committed.
    """
    stage = root.parent
    return root.with_name(root.name + ".begun"), stage.with_name(f".{stage.name}.begun")


def leave_word(root: Path, notice: Callable[[str], None]) -> None:
    """Of a checkpoint, outside of the directories that may be mounted."""
    try:
        for marker in _markers(root):
            marker.touch()
    except OSError as error:
        notice(
            f"{error.filename}: {error.strerror}; the checkpoint is whole, but if its "
            "directory vanishes the stage will not know that it was there"
        )


def begin_anew(root: Path) -> str:
    """What begins a stage anew wherever its checkpoints are gone or damaged: to empty the
    directory, or to remove a link, leaves the marker beside it, which then refuses.
    """
    return f"move {root.parent} away to begin the stage anew"


def require_none_ever(root: Path) -> None:
    """CheckpointError where a stage had checkpoints and none is to be seen: a link that
    leads nowhere, or to a file system that is not mounted.
    """
    if root.is_symlink() and not root.exists():
        raise CheckpointError(
            f"{root} is a link to {root.readlink()}, which is not there; mount it, or "
            f"{begin_anew(root)}"
        )
    inside, outside = _markers(root)
    if inside.exists():
        raise CheckpointError(
            f"{root} is empty, but {inside.name} beside it says that the stage "
            f"had checkpoints; mount what holds them, or {begin_anew(root)}"
        )
    stage = root.parent
    if outside.exists() and stage.is_dir() and not any(stage.iterdir()):
        raise CheckpointError(
            f"{stage} is empty, but {outside.name} beside it says that the stage had "
            f"checkpoints; mount what holds them, or remove {stage} to begin the stage "
            "anew"
        )
