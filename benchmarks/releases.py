"""What computed a result: the releases of the packages that it may have been computed by, and
the kernel. They stand with each result, so that no table has two releases of a package, nor
two kernels of one row, and no run goes on with a file that has another's. Results that say
no releases are older; each of these is told from one that says them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import alia_ctx
from alia_ctx.optional_packages import installed_version
from benchmarks.pages import write_result

Releases = dict[str, str]
Result = dict[str, Any]

# Distributions, and the module of each; flash-attn-4 is within the module of flash-attn.
MODULES = {
    "alia-ctx": "alia_ctx",
    "megatron-core": "megatron.core",
    "transformer_engine": "transformer_engine",
    "transformers": "transformers",
    "liger-kernel": "liger_kernel",
    "torchtitan": "torchtitan",
    "ring-flash-attn": "ring_flash_attn",
    "flash-attn": "flash_attn",
    "flash-attn-3": "flash_attn_interface",
    "flash-attn-4": "flash_attn.cute",
}
FLASH = ("flash-attn", "flash-attn-3", "flash-attn-4")
ENGINE = ("alia-ctx", "megatron-core", "transformer_engine", *FLASH)
TE = ("transformer_engine", "flash-attn", "flash-attn-3")
_STATED = re.compile(r"^__version__\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)


def releases(distributions: Iterable[str]) -> Releases:
    """Of those that are there: the version of what an import would take, which may lie before
    the environment's own. Imports nothing, and finds what is hidden in this process too.
    """
    found = {name: _release(name, MODULES[name]) for name in distributions}
    return {name: version for name, version in found.items() if version is not None}


def _release(distribution: str, module: str) -> str | None:
    if distribution == "alia-ctx":
        return alia_ctx.__version__
    path, spec = sys.path, None
    names = module.split(".")
    for count in range(len(names)):
        name = ".".join(names[: count + 1])
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None:  # missing, or where a finder of its own looks
            return installed_version(distribution)
        path = list(spec.submodule_search_locations or ())
    assert spec is not None
    own = Path(path[0] if path else spec.origin or "")
    above = str(own.parents[len(names) - 1])
    for beside in importlib.metadata.distributions(name=distribution, path=[above]):
        return beside.version
    # A folder on the path without metadata hides what has them.
    if spec.origin is not None and Path(spec.origin).suffix == ".py":
        stated = _STATED.search(Path(spec.origin).read_text(errors="replace"))
        if stated is not None:
            return stated[1]
    return installed_version(distribution) or "that states no version"


class MixedError(Exception):
    """A result beside those of another release or kernel."""


@dataclass
class Computed:
    """What computed the results of one table, or of a file."""

    shared: Releases = field(default_factory=dict)
    of: dict[object, Releases | None] = field(default_factory=dict)
    kernels: dict[object, str] = field(default_factory=dict)

    def conflicts(
        self, who: object, own: Releases | None, row: object = None, kernel: str = ""
    ) -> list[str]:
        """In words, what forbids a result of `who` beside these: other releases than its
        earlier results had, or than any other has of a package, or another kernel on `row`.
        """
        words = []
        earlier = self.of.get(who)
        if who in self.of and (earlier is None) != (own is None):
            words.append(
                f"{who} with {_said(earlier)} there and with {_said(own)} here"
            )
        else:
            here, absent = own or {}, "absent"
            pairs = {n: (self.shared[n], here[n]) for n in here if n in self.shared}
            if earlier is not None:  # the same packages too
                for name in (*earlier, *here):
                    pairs[name] = earlier.get(name, absent), here.get(name, absent)
            words += [
                f"{name} {there} there and {mine} here"
                for name, (there, mine) in pairs.items()
                if there != mine
            ]
        if kernel and self.kernels.get((who, row), kernel) != kernel:
            there = self.kernels[who, row]
            words.append(f"{who} by {there} there and by {kernel} here")
        return words

    def add(
        self, who: object, own: Releases | None, row: object = None, kernel: str = ""
    ) -> None:
        self.shared |= own or {}
        self.of.setdefault(who, own)
        if kernel:
            self.kernels.setdefault((who, row), kernel)

    def require(self, file: Path | None, result: Result, columns: Columns) -> None:
        """MixedError where a result that has come does not belong into the file of these; it
        is said on stderr, and not lost.
        """
        if words := self.conflicts(*columns.of(result)):
            write_result(result, None)
            raise MixedError(_refusal(file, words))


def are_releases(own: Any) -> bool:
    """Whether they are what a result says of releases, or nothing, as older ones do."""
    if own is None:
        return True
    return isinstance(own, dict) and all(isinstance(each, str) for each in own.values())


def _said(own: Releases | None) -> str:
    return "no releases" if own is None else "releases"


@dataclass(frozen=True)
class Columns:
    """Where a program's results say whose they are, of which row, and what computed them."""

    who: str
    kernel: str
    row: tuple[str, ...] = ()

    def of(self, result: Result) -> tuple[Any, Releases | None, Any, str]:
        """TypeError where a result is none, as of a file that was edited."""
        row = tuple(result.get(name) for name in self.row)
        hash(row)
        who, own, kernel = result[self.who], result.get("releases"), result[self.kernel]
        if not (isinstance(who, str) and isinstance(kernel, str) and are_releases(own)):
            raise TypeError(f"{who}: releases {own}, {self.kernel} {kernel}")
        return who, own, row, kernel


def by_computation(
    results: Sequence[Result], columns: Columns
) -> list[tuple[Computed, list[Result]]]:
    """Results that may stand in one table, in the order of the file: each in the first in
    which nothing is of another release or kernel. What was skipped stands with the one before.
    """
    tables: list[tuple[Computed, list[Result]]] = []
    last: list[Result] = []
    for result in results:
        if "skipped" in result:
            last.append(result)
            continue
        own = columns.of(result)
        fitting = [each for each in tables if not each[0].conflicts(*own)]
        if not fitting:
            # With what was skipped before any was measured.
            fitting = [(Computed(), [] if tables else last)]
            tables += fitting
        computed, last = fitting[0]
        computed.add(*own)
        last.append(result)
    return tables or [(Computed(), last)]


def require_same_computation(
    file: Path,
    there: Iterable[tuple[Any, Releases | None, Any, str]],
    here: Mapping[str, Releases],
) -> Computed:
    """ValueError where results of `here`, releases by whose, do not belong into a file that
    has the results `there`, (whose, releases, row, kernel); else what computed those.
    """
    known, apart = Computed(), []
    for each in there:
        if each[1] is None:
            apart.append(f"{each[0]} with no releases there")
        known.add(*each)
    for who, own in here.items():
        apart += known.conflicts(who, own)
    if apart:
        raise ValueError(_refusal(file, apart))
    return known


def _refusal(file: Path | None, apart: Iterable[str]) -> str:
    words = ", ".join(dict.fromkeys(apart))
    return f"{file} has results that others computed ({words}); name another --out"


def print_installed(computed: Computed) -> None:
    """A sentence of the releases, and an empty line; nothing where none is said."""
    words = ", ".join(f"{name} {version}" for name, version in computed.shared.items())
    if words:
        print(f"With {words}.\n")
