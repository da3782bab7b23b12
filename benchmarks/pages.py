"""Benchmarks print Markdown: `python benchmarks/NAME.py > docs/benchmarks/NAME.md`.

A page begins with the command that makes it and the machine; progress goes to stderr.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


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
        with out.open("a") as file:
            file.write(line + "\n")


def read_results(file: Path, key: str) -> list[dict[str, Any]]:
    """What `write_result` wrote of a program whose results all have `key`; ValueError where
    another program did, or none.
    """
    results = [json.loads(line) for line in file.read_text().splitlines()]
    if not results or not all(isinstance(r, dict) and key in r for r in results):
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
