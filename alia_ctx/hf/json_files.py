"""The JSON files of a Hugging Face directory, and typed reading of what they hold."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from alia_ctx.errors import CheckpointError, Problem
from alia_ctx.files import parse_json

_REMEDY = "take the file from the model's publisher"
_LARGEST = (
    2**48
)  # of what a model counts; arithmetic with it stays within int64 and fp64


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError where it is missing or is none."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
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


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` as Hugging Face's libraries do: indented, in its own order."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can only escape
        data = json.dumps(document, indent=2).encode()
    path.write_bytes(data + b"\n")


def refusal(path: Path | str, problems: list[Problem]) -> CheckpointError:
    """The error that `path` cannot be expressed, with all that is wrong in it."""
    lines = [f"  {problem}" for problem in problems]
    return CheckpointError(
        "\n".join([f"{path}: this model cannot be expressed", *lines])
    )


class Fields:
    """Typed values of a JSON object. What is not of its type is added to `problems`, and
    read as some value of the type: nothing is to be made of it.

    A whole float is an integer (131072.0): some writers know no integers. Nothing counts
    more than 2^48.
    """

    def __init__(
        self, values: Mapping[str, Any], problems: list[Problem], prefix: str = ""
    ) -> None:
        self.values, self.problems, self._prefix = values, problems, prefix

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """An integer from `least` on; `default` where the key is absent or null."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int and least <= value <= _LARGEST:
            return value
        what = "a positive integer" if least else "an integer, not negative"
        self._wrong(name, f"must be {what}, at most {_LARGEST}")
        return 1

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; `default` where the key is absent."""
        value = self.values.get(name, default)
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
        self._wrong(name, "must be a finite number")
        return 1.0

    def flag(self, name: str, default: bool | None = None) -> bool:
        """true or false; `default` where the key is absent."""
        value = self.values.get(name, default)
        if isinstance(value, bool):
            return value
        self._wrong(name, "must be true or false")
        return False

    def ids(self, name: str) -> None:
        """A token id or a list of them; true, which counts as 1, is none."""
        value = self.values.get(name)
        entries = value if isinstance(value, list) else [value]
        if any(isinstance(entry, bool | list | Mapping) for entry in entries):
            self._wrong(name, "must be a token id, or a list of them")

    def words(self, name: str) -> list[str]:
        """A list of strings; empty where the key is absent or null."""
        value = self.values.get(name)
        if value is None:
            return []
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return value
        self._wrong(name, "must be a list of strings")
        return []

    def mapping(self, name: str, *, integers: Literal["keys", "values"]) -> None:
        """An object whose keys, or values, are integers, written as text or not."""
        value = self.values.get(name)
        if isinstance(value, Mapping):
            side = value.keys() if integers == "keys" else value.values()
            if all(re.fullmatch(r"\d+", str(entry)) for entry in side):
                return
        self._wrong(name, f"must be an object whose {integers} are integers")

    def _wrong(self, name: str, rule: str) -> None:
        value = repr(self.values.get(name))
        self.problems.append(Problem(self._prefix + name, value, rule, _REMEDY))
