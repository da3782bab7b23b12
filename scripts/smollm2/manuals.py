"""Debian manuals as text: fetched by `apt-get` and written as documents, or written elsewhere.

manuals.jsonl        in Spanish, Catalan, Basque and Galician, each a book
held-out-short.jsonl manual pages and prose: kinds of text that are not trained on
packages.json        the packages that both were made from
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from alia_ctx.errors import DataError
from alia_ctx.files import write_json
from alia_ctx.progress import say
from scripts.smollm2.documents import LONGEST, number, write_documents
from scripts.smollm2.notes import read_note

MANUALS = (
    "libreoffice-help-es",
    "libreoffice-help-ca",
    "libreoffice-help-eu",
    "libreoffice-help-gl",
    "debian-reference-es",
    "jargon-text",
)
FILES = ("manuals.jsonl", "held-out-short.jsonl")
PACKAGES = "packages.json"
_ELSEWHERE = (
    "write them on another machine (make smollm2 there) and name its folder: "
    'SMOLLM2_ARGS="--manuals OUTPUT/text/debian"'
)


def write_manuals(directory: Path) -> list[str]:
    """Fetch Debian's manuals and write them; returns the packages that are in them.

    What was out of reach for an earlier start is asked for again. DataError where the
    machine has not the tools, or none of the manuals is within reach.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = [name for name in MANUALS if not (directory / name).is_dir()]
    tools = ("apt-get", "dpkg-deb", "man") if missing else ("man",)
    if lacking := [tool for tool in tools if not shutil.which(tool)]:
        raise DataError(
            f"manuals are fetched by {', '.join(lacking)}, which this machine has not; "
            f"{_ELSEWHERE}"
        )
    for package in missing:
        if problem := _fetch(directory, package):
            say(f"{package} {problem}; the corpus goes without it")
    there = [name for name in MANUALS if (directory / name).is_dir()]
    note = directory / PACKAGES
    is_written = all((directory / name).is_file() for name in FILES)
    if is_written and note.is_file():
        remedy = f"remove {note}: the next start writes the manuals again"
        if read_note(note, {"packages": list}, remedy)["packages"] == there:
            return there
    write_documents(
        directory / FILES[0],
        _books(directory, there),
        "none of the Debian packages of manuals is within reach: see to the network and "
        f"to `apt-get update`, and start again; or {_ELSEWHERE}",
    )
    write_documents(
        directory / FILES[1],
        _other_kinds(directory),
        "there are neither manual pages on this machine (/usr/share/man) nor the package "
        f"jargon-text: install some and start again; or {_ELSEWHERE}",
    )
    write_json(note, {"packages": there})
    return there


def _fetch(directory: Path, package: str) -> str | None:
    """Unpack a package of Debian's as DIRECTORY/PACKAGE; why not, where it cannot be."""
    for old in directory.glob(f"{package}_*.deb"):
        old.unlink()  # of a start that was stopped: it may not be whole
    part = directory / f"{package}.part"
    shutil.rmtree(part, ignore_errors=True)
    fetched = subprocess.run(
        ["apt-get", "download", package], cwd=directory, capture_output=True
    )
    files = sorted(directory.glob(f"{package}_*.deb"))
    if fetched.returncode or not files:
        return "is out of reach"
    unpack = ["dpkg-deb", "-x", files[0].name, part.name]
    if subprocess.run(unpack, cwd=directory, capture_output=True).returncode:
        shutil.rmtree(part, ignore_errors=True)
        return "cannot be unpacked"
    part.rename(directory / package)
    return None


class _Words(HTMLParser):
    """Text of a page of HTML, a line for each block."""

    _BLOCKS = frozenset({"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "pre"})
    _LEFT_OUT = frozenset({"script", "style", "head"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skipping += tag in self._LEFT_OUT
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._skipping -= tag in self._LEFT_OUT

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.parts.append(data)

    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self.parts).splitlines())
        return re.sub(r"\n{2,}", "\n", "\n".join(lines)).strip()


def _books(directory: Path, packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A book for each folder of pages in a manual: pages in the order of their names."""
    for package in packages:
        pages: dict[str, list[Path]] = {}
        for file in sorted((directory / package).rglob("*.html")):
            folder = file.relative_to(directory / package).parent.as_posix()
            pages.setdefault(folder, []).append(file)
        for folder, files in pages.items():
            texts: dict[str, None] = {}
            for file in files:
                words = _Words()
                words.feed(file.read_text(encoding="utf-8", errors="replace"))
                texts.setdefault(words.text())
            book = "\n\n".join(texts)
            for at in range(0, len(book), LONGEST):
                if len(book) - at > 2_000:
                    yield f"{package}/{folder}/{at}", book[at : at + LONGEST]


def _other_kinds(directory: Path) -> Iterator[tuple[str, str]]:
    """Manual pages in English, and prose: the Jargon File, in parts."""
    for section in ("man7", "man8", "man1"):
        pages = sorted(
            Path("/usr/share/man", section).glob("*.gz"), key=lambda p: number(p.name)
        )
        for page in pages[:250]:
            shown = subprocess.run(
                ["man", "--local-file", "--encoding=utf8", "--nh", "--nj", str(page)],
                capture_output=True,
                text=True,
                errors="replace",
                env={"MANWIDTH": "100", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            )
            text = re.sub(r".\x08", "", shown.stdout)
            if len(text) > 8_000:
                yield f"{section}/{page.stem}", text
    for file in sorted((directory / "jargon-text").rglob("jargon.txt.gz")):
        try:
            text = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            say(f"{file} is damaged ({error}); the corpus goes without it")
            continue
        for at in range(0, len(text), 60_000):
            yield f"{file.stem}/{at}", text[at : at + 60_000]
