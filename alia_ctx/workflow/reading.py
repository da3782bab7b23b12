"""Documents that the steps of a run leave for each other, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alia_ctx.errors import DataError
from alia_ctx.files import parse_json
from alia_ctx.identity import IdentityError


def read_json(path: Path, artefact: str, remedy: str) -> Any:
    """What is in `path`, which describes `artefact`.

    IdentityError with the remedy where it is not there or no JSON. DataError where it
    cannot be read, which says nothing about what is in it.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise IdentityError(artefact, [f"there is no {path}"], remedy) from None
    except ValueError as error:
        raise IdentityError(
            artefact, [f"{path} is no JSON ({error})"], remedy
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); see to the file "
            "system or the permissions, and run it again"
        ) from error
