"""Benchmarks print Markdown: `python benchmarks/NAME.py > docs/benchmarks/NAME.md`.

A page begins with the command that makes it and the machine; progress goes to stderr.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version


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
