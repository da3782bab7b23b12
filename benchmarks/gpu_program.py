"""The command line of the programs that measure GPUs: options are checked before anything
starts (status 2, as where there is no GPU), and a case that did not run is said once more at
the end (status 1).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.machinery
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import torch

from alia_ctx.config.run import EngineConfig
from alia_ctx.errors import AliaError
from alia_ctx.files import BusyError, exclusive
from benchmarks.pages import WriteError, read_results
from benchmarks.releases import (
    Columns,
    Computed,
    MixedError,
    Releases,
    require_same_computation,
)
from benchmarks.settings import Setting, by_setting, require_same

MOST_ON_A_HOST = 8192  # tokens of a row: a dense one of 32,768 takes minutes and 32 GiB
REFUSED = 2  # the status, where nothing has been measured
UNWRITTEN = 74  # the status of a rank that cannot write the results
_ENGINE = get_type_hints(EngineConfig)
_NOT_LOCKED = contextlib.nullcontext()


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


def absent_file(text: str) -> Path:
    """A type of option: a file that is not there yet, in a folder that is."""
    path = new_file(text)
    if path.exists():
        raise argparse.ArgumentTypeError(
            f"{text} is there already and would be overwritten; name another file"
        )
    return path


def note_trial() -> None:
    """Say that a program which can be tried on a host does so: a job without its GPUs would
    compute for hours.
    """
    if not torch.cuda.is_available():
        print(
            "torch finds no GPU: a trial on the processor, whose figures say nothing of one "
            "and which takes small sizes alone",
            file=sys.stderr,
            flush=True,
        )


class Parser(argparse.ArgumentParser):
    """Says what is wrong once, from the first of several ranks, and ends with status 2."""

    def error(self, message: str) -> NoReturn:
        self._end(f"{self.format_usage()}{self.prog}: error: {message}")

    def refuse(self, problem: str) -> NoReturn:
        """One line, of what is no matter of options."""
        self._end(f"{self.prog}: {problem}")

    def _end(self, words: str) -> NoReturn:
        if is_first():
            print(words, file=sys.stderr, flush=True)
        sys.exit(REFUSED)

    def require_gpus(self, ranks: int = 1) -> None:
        """End here where this machine shows fewer GPUs than there are ranks."""
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found < ranks:
            self.refuse(f"needs {ranks} GPU(s), and torch finds {found}")

    def require_gpus_or_few_tokens(self, ranks: int, option: str, tokens: int) -> None:
        """That, or, in a program that can be tried on a host, the rows of `option` so short
        that it ends there.
        """
        if torch.cuda.is_available():
            self.require_gpus(ranks)
        elif tokens > MOST_ON_A_HOST:
            self.refuse(
                f"needs {ranks} GPU(s), and torch finds none; a host tries it with rows of "
                f"at most {MOST_ON_A_HOST:,} tokens ({option})"
            )

    def world_size(self) -> int:
        """Of the ranks that torchrun has started; 1 without it. Ends here where its variables
        are no numbers.
        """
        for name, least in (("RANK", 0), ("WORLD_SIZE", 1)):
            text = os.environ.get(name, str(least))
            if not text.isdecimal() or int(text) < least:
                self.refuse(
                    f"{name}={text} in the environment is no number of {least} or more; "
                    "unset it, or start the ranks with torchrun"
                )
        return int(os.environ.get("WORLD_SIZE", "1"))

    @contextlib.contextmanager
    def writing(self, out: Path | None, **ranks: Any) -> Iterator[None]:
        """Be the only program that writes to `out`; ends here where another does, and, with
        status 1, where results cannot be written. `ranks`: as `exclusive` has them.
        """
        locked = out is not None and (out.is_file() or not out.exists())
        try:
            with exclusive(out, self.prog, **ranks) if out and locked else _NOT_LOCKED:
                yield
        except BusyError as error:
            self.refuse(str(error))
        except WriteError as error:
            sys.exit(f"{self.prog}: {error}")

    def begun(self, run: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The results of `run`, which may be a trial on a host; ends here with one that does
        not belong beside those of the file.
        """
        note_trial()
        try:
            return run()
        except MixedError as error:
            self.refuse(str(error))

    def read(self, file: Path, read: Callable[[Path], Any]) -> Any:
        """What `read` makes of a file of results; ends here where it is none. What it prints
        is printed where all of it is.
        """
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                value = read(file)
        except OSError as error:
            self.refuse(f"{file} cannot be read ({error.strerror or error})")
        # A file that a person has edited may hold anything anywhere.
        except Exception as error:
            why = str(error) if type(error) is ValueError else repr(error)
            said = why.startswith(str(file))
            no_file = f"{file} is no file of this program's results"
            self.error(why if said else f"{no_file} ({why})")
        sys.stdout.write(printed.getvalue())
        return value

    def require_setting(
        self,
        file: Path | None,
        setting: Setting,
        columns: Columns,
        installed: Mapping[str, Releases],
    ) -> Computed:
        """What computed the results of a file of JSON lines. End here where they are of
        another setting, of other releases than those `installed` for who is to be measured,
        or of another program: without the column of who it is.
        """
        if file is None or not file.exists() or not file.stat().st_size:
            return Computed()
        results = self.read(file, lambda path: read_results(path, columns.who))
        measured = [each for each in results if "skipped" not in each]
        there = self.read(file, lambda _: [columns.of(each) for each in measured])
        try:
            for known, _ in by_setting(results, list(setting)):
                require_same(file, known, setting)
            return require_same_computation(file, there, installed)
        except ValueError as error:
            self.refuse(str(error))


# What a case or a peer says where it cannot run here; of anything else the traceback is shown.
REFUSALS = (AliaError, ImportError, torch.OutOfMemoryError)


def one_line(error: BaseException) -> str:
    """What an error says, with its type where that is not of this project."""
    if (absent := not_installed(error)) is not None:
        return absent
    words = " ".join(str(error).split())
    return words if isinstance(error, AliaError) else f"{type(error).__name__}: {words}"


def not_installed(error: BaseException) -> str | None:
    """Of an import of a package that is not there, or is hidden in this process, what is
    right of the two: for what is hidden Python says that its import was halted, or that it
    is no package. None of any other error.
    """
    package = getattr(error, "name", None) or ""
    package = package.partition(".")[0] if isinstance(error, ImportError) else ""
    if not package or sys.modules.get(package) is not None:
        return None
    if importlib.machinery.PathFinder.find_spec(package) is None:
        return f"{package} is not installed"
    if package in sys.modules:
        where = "does not import" if torch.cuda.is_available() else "is for GPUs alone"
        return f"{package} is there and left out, as it {where}"
    return None


def forget_case() -> None:
    """Free the memory of a case whose objects are gone, and what was compiled for it. dynamo
    compiles a function for eight shapes, and from the ninth on in one process runs it as
    Python, so that later cases would be slower for the earlier ones' sake.
    """
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def end_at_once(words: str, status: int) -> NoReturn:
    """End this rank alone: what would be left orderly waits for the other ranks, which
    whoever started them ends as soon as one has failed.
    """
    print(words, file=sys.stderr, flush=True)
    os._exit(status)


def end(did_not_run: Iterable[str], not_finite: Iterable[str] = ()) -> None:
    """End with status 1, saying which cases did not run, and of which the results are not
    finite; go on where all are well.
    """
    failed = False
    for words, cases in (("did not run", did_not_run), ("not finite", not_finite)):
        if names := list(dict.fromkeys(cases)):
            failed = True
            if is_first():
                print(f"{words}: {', '.join(names)}", file=sys.stderr, flush=True)
    if failed:
        sys.exit(1)


def is_first() -> bool:
    """Whether this process speaks: all but the ranks above 0 do."""
    rank = os.environ.get("RANK", "").strip()
    return not rank.isdecimal() or int(rank) == 0
