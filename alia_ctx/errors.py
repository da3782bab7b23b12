"""The errors that a user can cause, each naming what is wrong and what to do about it, and
requests to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One violated rule: `key` (dotted, as in the YAML), its `value`, the `rule`, and
    the `remedy`. A `value` of None is one that was not given.
    """

    key: str
    value: object
    rule: str
    remedy: str

    def __str__(self) -> str:
        given = "" if self.value is None else f"={_short(self.value)}"
        return f"{self.key}{given}: {self.rule}; {self.remedy}"


def _short(value: object, limit: int = 120) -> str:
    text = str(_plain(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _plain(value: object) -> object:
    """A value with its paths, also those in lists, as a user wrote them."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple)):
        return (
            type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
        )
    return value


def excerpt(data: bytes, most: int) -> str:
    """The first `most` bytes of what another program says, as a line that a terminal can
    show whatever they are.
    """
    text = " ".join(data[:most].decode("utf-8", "replace").split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


class Problems(list[Problem]):
    """Violated rules, collected so that all of them are reported at once."""

    def need(
        self, condition: bool, key: str, value: object, rule: str, remedy: str
    ) -> bool:
        """Add a problem unless `condition` holds; returns whether it does.

        Written so that a NaN fails: `need(size > 0, ...)`, not `if size <= 0`.
        """
        if not condition:
            self.add(key, value, rule, remedy)
        return condition

    def add(self, key: str, value: object, rule: str, remedy: str) -> None:
        """Add a problem whose condition stands in an `if`, as where its remedy is costly."""
        self.append(Problem(key, value, rule, remedy))

    def counted(self) -> str:
        """`1 problem`, `3 problems`."""
        return f"{len(self)} problem{'s' if len(self) != 1 else ''}"


class StopRequest(BaseException):
    """A request from outside to stop, on its way out of whatever was being done."""


# What nobody holds up who guards against the errors of other packages.
STOP_REQUESTS = (KeyboardInterrupt, StopRequest)


class AliaError(Exception):
    """Base of everything that the command line reports in one message, without a traceback.

    `on_all_ranks`: every rank of the run raises the same, so that the first alone says it.
    """

    exit_code = 2
    on_all_ranks = False

    def to_json(self) -> dict[str, Any]:
        """The error for other programs, with its problems one by one."""
        problems = [
            {**vars(problem), "value": _short(problem.value)}
            for problem in getattr(self, "problems", ())
        ]
        name = type(self).__name__
        return {"error": name, "message": str(self), "problems": problems}


class ConfigError(AliaError):
    """The configuration breaks one or more rules; `problems` holds them all."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        lines = [f"  {problem}" for problem in self.problems]
        super().__init__(
            "\n".join(
                [message, *lines] if message else [line.strip() for line in lines]
            )
        )


class DataError(AliaError):
    """An input file, token store, or pack plan is missing, broken, or not the one it should be."""


class LayoutError(AliaError):
    """A parallel layout or kernel does not fit the model, the row, or the machine."""


class NotInstalledError(LayoutError):
    """What a layout asks for is of a package that is not installed or does not import."""


class CheckpointError(AliaError):
    """A checkpoint or Hugging Face directory is missing, incomplete, corrupt, or of
    another model.
    """
