"""The distributions that are installed, and which of them hold the same packages: what is
held out of training is held out with all that comes with it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Distribution:
    """A NAME-VERSION.dist-info, and the names by which what it brings is imported."""

    name: str
    folder: Path
    imports: frozenset[str]

    @property
    def described(self) -> str:
        """What its metadata says of it in prose; empty where there is none."""
        try:
            text = (self.folder / "METADATA").read_text("utf-8", errors="replace")
        except OSError:
            return ""
        return text.partition("\n\n")[2]


def distributions(root: Path) -> list[Distribution]:
    """Those in the folder of packages `root`, in the order of their names; of one whose
    metadata is broken what can be read.
    """
    found = []
    for folder in sorted(root.glob("*.dist-info")):
        name = folder.name.removesuffix(".dist-info").rpartition("-")[0]
        name = name or folder.name.removesuffix(".dist-info")
        found.append(Distribution(name, folder, frozenset(_imports(folder))))
    return found


def canonical(name: str) -> str:
    """A distribution's name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def groups(found: list[Distribution]) -> Mapping[str, str]:
    """The group of each import name and of each distribution (as `dist:NAME`): those that
    share a name to import, as `google`, are one, called as the first of them.
    """
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for distribution in found:
        own = f"dist:{canonical(distribution.name)}"
        for name in sorted(distribution.imports):
            one, other = sorted((top(own), top(name)))
            # Names of distributions first, so that the group is called by one.
            if other.startswith("dist:") and not one.startswith("dist:"):
                one, other = other, one
            parent[other] = one
        top(own)
    return {name: top(name) for name in parent}


def _imports(folder: Path) -> Iterator[str]:
    for line in _lines(folder / "top_level.txt"):
        yield line.strip().split("/")[0]
    for row in csv.reader(_lines(folder / "RECORD")):
        first, _, rest = (row[0] if row else "").partition("/")
        if rest and re.fullmatch(r"\w+", first) and first != "__pycache__":
            yield first
        elif re.fullmatch(r"\w+\.py", first):
            yield first.removesuffix(".py")


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.replace("\0", "").splitlines() if line.strip()]
