"""The file of `gpu_context_parallel.py`: written after each method, read to go on and to
print its tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.files import parse_json
from benchmarks.figures import differs_by, is_finite
from benchmarks.pages import print_skipped, table, write_whole
from benchmarks.releases import (
    Computed,
    Releases,
    are_releases,
    print_installed,
    require_same_computation,
)
from benchmarks.settings import require_same

_PARTS = ("setting", "begun", "rows")


@dataclass
class Record:
    """What has been measured under one setting (GPUs, card, torch, kernel, repeats).

    Every rank has the same; the one that `writes` keeps the file at `path`.
    """

    path: Path
    content: dict[str, Any]
    writes: bool

    @classmethod
    def open(
        cls,
        path: Path,
        setting: dict[str, Any],
        *,
        writes: bool,
        installed: Mapping[str, Releases] | None = None,
    ) -> Record:
        """That of the file, or a new one. ValueError where the file has another setting, or
        results of other releases than those `installed` for the methods to be measured
        (None: not looked at), or is another program's.
        """
        content: dict[str, Any] = {"setting": setting, "begun": None, "rows": {}}
        if path.exists():
            content = cls.read(path)
            require_same(path, content["setting"], setting)
            if installed is not None:
                require_same_computation(path, _measured(content), installed)
        return cls(path, content, writes)

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """A file's content; ValueError where it is none of this program's."""
        try:
            content = parse_json(path.read_text())
        except ValueError:
            content = None
        if not _is_content(content):
            raise ValueError(
                f"{path} is no file of this program's results; name another"
            )
        whole: dict[str, Any] = content
        return whole

    def forget_skipped(self, rows: list[str], methods: list[str]) -> None:
        """Of earlier runs, so that this one tries them again: a package may be there now, or
        memory. They leave the file with the next one that begins.
        """
        for row in rows:
            known = self.content["rows"].get(row, {}).get("methods", {})
            for method in methods:
                if "skipped" in known.get(method, {}):
                    del known[method]

    def missing(self, row: str, methods: list[str]) -> list[str]:
        """The methods that have no result for a row yet, in their order."""
        known = self.content["rows"].get(row, {}).get("methods", {})
        return [method for method in methods if method not in known]

    def is_measured(self, row: str, method: str) -> bool:
        methods = self.content["rows"].get(row, {}).get("methods", {})
        return "skipped" not in methods.get(method, {"skipped": ""})

    def begin(self, row: str, documents: int, method: str) -> None:
        """Say which method is at work, so that one that does not come back is known."""
        self.content["rows"].setdefault(row, {"documents": documents, "methods": {}})
        self.content["begun"] = [row, method]
        self._write()

    def finish(self, row: str, method: str, result: dict[str, Any]) -> None:
        self.content["rows"][row]["methods"][method] = result
        self.content["begun"] = None
        self._write()
        if self.writes:
            print(row, method, json.dumps(result), file=sys.stderr, flush=True)

    @classmethod
    def forget_begun(cls, path: Path) -> None:
        """Of a run that was killed: what now ends the processes is not its method. ValueError
        as of `read`.
        """
        if path.exists():
            cls(path, cls.read(path) | {"begun": None}, writes=True)._write()

    @classmethod
    def blame(cls, path: Path, problem: str) -> bool:
        """Record that the method at work has ended the processes; whether there is one."""
        content = cls.read(path) if path.exists() else {"begun": None}
        if content["begun"] is None:
            return False
        row, method = content["begun"]
        cls(path, content, writes=True).finish(row, method, {"skipped": problem})
        return True

    def _write(self) -> None:
        if self.writes:
            write_whole(json.dumps(self.content, indent=1), self.path)


def _is_content(content: Any) -> bool:
    """Whether it is built as a record is; not whether its figures are numbers."""
    return (
        isinstance(content, dict)
        and content.keys() == {*_PARTS}
        and isinstance(content["setting"], dict)
        and isinstance(content["rows"], dict)
        and all(map(_is_row, content["rows"].values()))
    )


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == {"documents", "methods"}
        and isinstance(row["methods"], dict)
        and all(map(_is_result, row["methods"].values()))
    )


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict):
        return False
    if "skipped" in result:
        return isinstance(result["skipped"], str)
    named = isinstance(result.get("computed_by"), str)
    return named and are_releases(result.get("releases"))


def _measured(content: dict[str, Any]) -> list[tuple[str, Releases | None, str, str]]:
    """(method, releases, row, kernel) of each result."""
    return [
        (method, result.get("releases"), row, result["computed_by"])
        for row, results in content["rows"].items()
        for method, result in results["methods"].items()
        if "skipped" not in result
    ]


def failures(
    content: dict[str, Any], rows: list[str], methods: list[str]
) -> tuple[list[str], list[str]]:
    """In words, which of these methods did not run, and of which the result is not finite."""
    skipped, odd = [], []
    for row in rows:
        for method in methods:
            result = content["rows"][row]["methods"][method]
            if "skipped" in result:
                skipped.append(f"{method} ({row})")
            elif not is_finite(result, "differs_from_ours"):
                odd.append(f"{method} ({row})")
    return skipped, odd


COLUMNS = (
    *("row", "documents", "method", "computed by", "forward", "backward", "both"),
    *("speed against ours", "ms, forward and backward", "differs from ours by"),
)


def print_table(content: dict[str, Any]) -> None:
    """Markdown of a record: a table of what was measured, a list of what was not."""
    setting = content["setting"]
    words = f"{setting['cp']} x {setting['card']}, torch {setting['torch']}"
    if "kernel" in setting:
        words += f", our methods on {setting['kernel']}"
    print(f"{words}.\n")
    computed = Computed()
    for each in _measured(content):
        computed.add(*each)
    print_installed(computed)
    lines, skipped = [], []
    for row, results in content["rows"].items():
        length, kind = row.split(":")
        words = f"{int(length):,}, {kind}"
        ours = results["methods"].get("ours", {}).get("both_tflops")
        for method, result in results["methods"].items():
            if "skipped" in result:
                skipped.append((method, words, result["skipped"]))
                continue
            both = result["both_tflops"]
            times = [1e3 * s for s in result["both_seconds"]]
            lines.append(
                [
                    *(words, results["documents"], method, result["computed_by"]),
                    f"{result['forward_tflops']:.0f}",
                    f"{result['backward_tflops']:.0f}",
                    f"{both:.0f}",
                    f"{both / ours:.2f}" if ours else "",
                    f"{min(times):.2f} to {max(times):.2f}",
                    differs_by(result, "differs_from_ours"),
                ]
            )
    print(table(COLUMNS, lines))
    print_skipped(skipped)
