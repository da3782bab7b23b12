"""The command line of the programs that measure GPUs: options are checked before anything
starts (status 2, as where there is no GPU), and a case that did not run is said once more at
the end (status 1).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import torch

from alia_ctx.config.run import EngineConfig

_ENGINE = get_type_hints(EngineConfig)


def choices(setting: str) -> tuple[str, ...]:
    """The values of a setting of `engine`."""
    return get_args(_ENGINE[setting])


def at_least(least: float, of: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """A type of option: a number that is not below `least`."""

    def number(text: str) -> Any:
        value = of(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    number.__name__ = "number"  # argparse says "invalid number value"
    return number


def parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type of option: what `parse` makes of it, whose ValueErrors are the message."""

    def value(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return value


def existing_file(text: str) -> Path:
    """A type of option: a file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is not there, or no file")
    return path


def new_file(text: str) -> Path:
    """A type of option: a file in a folder that is there."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text} cannot be written: {path.parent} is no folder, or it is one itself"
        )
    return path


class Parser(argparse.ArgumentParser):
    """Says what is wrong once, from the first of several ranks, and ends with status 2."""

    def error(self, message: str) -> NoReturn:
        self._end(f"{self.format_usage()}{self.prog}: error: {message}")

    def refuse(self, problem: str) -> NoReturn:
        """One line, of what is no matter of options."""
        self._end(f"{self.prog}: {problem}")

    def _end(self, words: str) -> NoReturn:
        if os.environ.get("RANK", "0") == "0":
            print(words, file=sys.stderr, flush=True)
        sys.exit(2)

    def require_gpus(self, ranks: int = 1) -> None:
        """End here where this machine shows fewer GPUs than there are ranks."""
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found < ranks:
            self.refuse(f"needs {ranks} GPU(s), and torch finds {found}")

    def require_gpus_or_none(self, ranks: int) -> None:
        """That, in a program that can be tried on a host."""
        if torch.cuda.is_available():
            self.require_gpus(ranks)

    def read(self, file: Path, read: Callable[[Path], Any]) -> Any:
        """What `read` makes of a file of results; ends here where it is none."""
        try:
            return read(file)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.error(f"{file} is no file of this program's results ({error!r})")


def world_size() -> int:
    """Of the ranks that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def end(did_not_run: Iterable[str]) -> None:
    """End with status 1, saying which cases did not run; go on where all did."""
    if names := list(dict.fromkeys(did_not_run)):
        if os.environ.get("RANK", "0") == "0":
            print(f"did not run: {', '.join(names)}", file=sys.stderr, flush=True)
        sys.exit(1)
