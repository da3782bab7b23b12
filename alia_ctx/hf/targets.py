"""The directory that a conversion writes: checked first, built under another name,
whole or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alia_ctx import checkpoint
from alia_ctx.errors import CheckpointError
from alia_ctx.files import exclusive
from alia_ctx.hf.ranks import Ranks


def check_target(target: Path, source: Path, overwrite: bool) -> None:
    if (
        target.resolve() == source.resolve()
        or source.resolve() in target.resolve().parents
    ):
        raise CheckpointError(
            f"{target}: lies in the directory that is converted; choose another one"
        )
    if (
        target.exists()
        and not overwrite
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise CheckpointError(
            f"{target} exists; remove it, choose another name, or allow overwriting"
        )
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; choose another name")


@contextmanager
def building(target: Path, ranks: Ranks, begin: Callable[[], Path]) -> Iterator[Path]:
    """The temporary directory beside `target`, removed if the block fails;

    system errors name the target.
    """
    what = "alia-ctx import-hf or export-hf"
    with exclusive(
        target, what, rank=ranks.rank, gather=lambda error: ranks.all(lambda: error)
    ):
        temporary: Path | None = None
        try:
            temporary = Path(ranks.first(lambda: str(begin())))
            yield temporary
        except OSError as error:
            raise CheckpointError(
                f"{target}: cannot be written ({error.strerror or error}); free the "
                "space or choose another place"
            ) from error
        finally:
            if temporary is not None and ranks.rank == 0:
                # After a commit the name is gone and this does nothing.
                checkpoint.discard(temporary)


def begin_export(hf_dir: Path) -> Path:
    temporary = hf_dir.with_name(hf_dir.name + ".incomplete")
    checkpoint.discard(temporary)
    temporary.mkdir(parents=True)
    return temporary
