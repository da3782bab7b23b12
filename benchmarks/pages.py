"""Benchmarks print Markdown: `python benchmarks/NAME.py > docs/benchmarks/NAME.md`.

A page begins with the command that makes it and the machine; progress goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alia_ctx.files import atomic_file


class WriteError(Exception):
    """Results cannot be written, which is no failure of what was measured."""


def heading(title: str, *packages: str) -> str:
    """A page's title, the command line that makes it, and what it ran on: cores, and
    the versions of Python and of `packages`.
    """
    script = f"benchmarks/{os.path.basename(sys.argv[0])}"
    command = shlex.join(["python", script, *sys.argv[1:]])
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in packages]
    return (
        f"# {title}\n\nMade by `{command}` on {os.cpu_count()} cores "
        f"({platform.machine()}), {', '.join(versions)}.\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; cells are written with `str`."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_result(result: dict[str, Any], out: Path | None) -> None:
    """Say a result on stderr, and add it to a file of JSON lines, as soon as it is there."""
    line = json.dumps(result)
    print(line, file=sys.stderr, flush=True)
    if out is not None:
        with _written(out), out.open("a+b") as file:
            file.seek(0)
            before, newline, last = file.read().rpartition(b"\n")
            if last and _is_whole(last):
                file.write(b"\n")
            else:  # what a kill cut short would be one line with this one
                file.truncate(len(before + newline))
            file.write(line.encode() + b"\n")


def write_whole(text: str, out: Path) -> None:
    """Write a file of results that is at all times this one or the one before."""
    with _written(out), atomic_file(out) as file:
        file.write(text.encode())


@contextlib.contextmanager
def _written(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise WriteError(f"{out} cannot be written ({why})") from error


def _is_whole(line: str | bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read_results(file: Path, key: str) -> list[dict[str, Any]]:
    """What `write_result` wrote of a program whose results all have `key`, but for a last one
    that a kill cut short; ValueError where another program did, or none.
    """
    *lines, last = file.read_text().split("\n")
    if last and _is_whole(last):  # as editors leave it that end no last line
        lines.append(last)
    elif last:
        print(f"{file}: the last line is cut short, and left out", file=sys.stderr)
    results = [json.loads(line) for line in lines]
    if not results:
        raise ValueError("it has no results")
    if not all(isinstance(r, dict) and key in r for r in results):
        raise ValueError(f"not every line has its {key!r}")
    return results


def print_skipped(skipped: Iterable[tuple[str, str, str]]) -> None:
    """A list of what was not measured, of (name, row, reason); nothing where there is none."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, row, reason in skipped:
        reasons.setdefault((name, reason), []).append(row)
    if reasons:
        print("\nNot measured:\n")
    for (name, reason), rows in reasons.items():
        print(f"- {name} ({'; '.join(rows)}): {reason}")
