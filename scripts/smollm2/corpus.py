"""Text of this machine as sources: repositories of code, manuals, short documents.

Nothing is fetched but Debian packages of manuals, where `apt-get` can; no package is
imported, its files are only read. Everything is written as JSON lines with `id` and
`text`:

code.jsonl          Python packages, each a document: its files one after the other
manuals.jsonl       Debian manuals in Spanish, Catalan, Basque and Galician, each a book
short.jsonl         README and documentation files of Python packages
held-out.jsonl      repositories of packages that are in none of the others
held-out-short.jsonl manual pages and prose: kinds of text that are not trained on
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file
from alia_ctx.progress import say

HELD_OUT_EVERY = 4  # every fourth package, by hash of its name, is held out
LONGEST = 800_000  # characters of a document: longer packages become volumes
MANUALS = (
    "libreoffice-help-es",
    "libreoffice-help-ca",
    "libreoffice-help-eu",
    "libreoffice-help-gl",
    "debian-reference-es",
    "jargon-text",
)
_SKIPPED = re.compile(
    r"/(tests?|testing|__pycache__|_vendor|site-packages)/|\.dist-info/"
)


def write_corpus(
    directory: Path, *, characters: int, manuals: Path | None = None
) -> None:
    """Write the corpus, at most about `characters` of code, unless it is there.

    manuals: a folder with manuals as this function wrote them elsewhere, for a machine
    that cannot get them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "held-out.jsonl").is_file():
        return
    if manuals is None:
        manuals = directory / "debian"
        write_manuals(manuals)
    for name in ("manuals", "held-out-short"):
        _write(directory / f"{name}.jsonl", _lines(manuals / f"{name}.jsonl"))
    _write(directory / "short.jsonl", _short_documents(characters // 8))
    _write(directory / "code.jsonl", _repositories(False, characters))
    _write(directory / "held-out.jsonl", _repositories(True, characters // 2))


def write_manuals(directory: Path) -> None:
    """Fetch Debian's manuals and write them as `manuals.jsonl` and `held-out-short.jsonl`."""
    if (directory / "held-out-short.jsonl").is_file():
        return
    directory.mkdir(parents=True, exist_ok=True)
    missing = [
        tool for tool in ("apt-get", "dpkg-deb", "man") if not shutil.which(tool)
    ]
    if missing:
        raise DataError(
            f"manuals are fetched by {', '.join(missing)}, which this machine has not; "
            "write them on another (make smollm2 there) and name its folder: "
            'SMOLLM2_ARGS="--manuals OUTPUT/text/debian"'
        )
    for package in MANUALS:
        if not (directory / package).is_dir():
            fetched = subprocess.run(
                ["apt-get", "download", package], cwd=directory, capture_output=True
            )
            part = directory / f"{package}.part"
            shutil.rmtree(part, ignore_errors=True)  # of a start that was stopped
            for file in directory.glob(f"{package}_*.deb"):
                unpack = ["dpkg-deb", "-x", file.name, part.name]
                if not subprocess.run(
                    unpack, cwd=directory, capture_output=True
                ).returncode:
                    part.rename(directory / package)
            if fetched.returncode:
                say(f"{package} is out of reach; the corpus goes without it")
    _write(directory / "manuals.jsonl", _books(directory))
    _write(directory / "held-out-short.jsonl", _other_kinds(directory))


# --- code -----------------------------------------------------------------------------


def _repositories(held_out: bool, characters: int) -> Iterator[tuple[str, str]]:
    """Volumes of each package: its sources in the order of their paths.

    Of a package that is held out no more than three, so that a mean over documents is
    not one over a package.
    """
    left = characters
    for name, files in _packages():
        if held_out is not (_number(name) % HELD_OUT_EVERY == 0):
            continue
        volume: list[str] = []
        size = number = 0
        for path, text in files:
            volume.append(f"# file: {path}\n{text.rstrip()}\n")
            size += len(volume[-1])
            if size > LONGEST:
                yield f"{name}/{number}", "\n".join(volume)
                left -= size
                number, volume, size = number + 1, [], 0
                if held_out and number == 3:
                    break
            if left < 0:
                return
        if size > 20_000:
            yield f"{name}/{number}", "\n".join(volume)
            left -= size


def _packages() -> Iterator[tuple[str, Iterator[tuple[str, str]]]]:
    """(name, its Python files) of each package that is installed, in the order of a hash:
    the same on every machine that has the same packages.
    """
    roots = [Path(sysconfig.get_paths()[name]) for name in ("purelib", "stdlib")]
    folders = {
        folder.name: folder
        for root in reversed(roots)
        for folder in root.iterdir()
        if folder.is_dir()
        and re.fullmatch(r"[a-zA-Z]\w+", folder.name)
        and folder.name not in ("test", "site-packages", "idlelib", "pip")
    }
    for name in sorted(folders, key=_number):
        yield name, _files(folders[name], ("*.py",))


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str]]:
    for pattern in patterns:
        for file in sorted(folder.rglob(pattern)):
            path = file.relative_to(folder.parent).as_posix()
            if _SKIPPED.search(f"/{path}"):
                continue
            try:
                text = file.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if 400 < len(text) < 400_000 and max(map(len, text.splitlines())) < 1_000:
                yield path, text


def _short_documents(characters: int) -> Iterator[tuple[str, str]]:
    """Documentation files, and the descriptions in the packages' metadata."""
    root = Path(sysconfig.get_paths()["purelib"])
    left = characters
    for folder in sorted(root.glob("*.dist-info"), key=lambda f: _number(f.name)):
        name = folder.name.split("-")[0]
        if _number(name) % HELD_OUT_EVERY == 0:
            continue
        described = (folder / "METADATA").read_text(encoding="utf-8", errors="replace")
        texts = [(f"{name}/README", described.partition("\n\n")[2])]
        if (root / name).is_dir():
            texts += _files(root / name, ("*.md", "*.rst", "*.txt"))
        for path, text in texts:
            if len(text) > 1_000:
                yield path, text[:60_000]
                left -= min(len(text), 60_000)
        if left < 0:
            return


# --- manuals --------------------------------------------------------------------------


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


def _books(directory: Path) -> Iterator[tuple[str, str]]:
    """A book for each folder of pages in a manual: pages in the order of their names."""
    for package in MANUALS:
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
            Path("/usr/share/man", section).glob("*.gz"), key=lambda p: _number(p.name)
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
        text = gzip.decompress(file.read_bytes()).decode("utf-8", "replace")
        for at in range(0, len(text), 60_000):
            yield f"{file.stem}/{at}", text[at : at + 60_000]


# --- common ---------------------------------------------------------------------------


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    if not file.is_file():
        raise DataError(f"{file}: no such file; name a folder with it (--manuals)")
    # Not splitlines: text holds other separators of lines, which JSON does not escape.
    for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        document = json.loads(line)
        yield document["id"], document["text"]


def _write(file: Path, documents: Iterator[tuple[str, str]]) -> None:
    count = size = 0
    with atomic_file(file) as out:
        for name, text in documents:
            record = json.dumps({"id": name, "text": text}, ensure_ascii=False)
            out.write(f"{record}\n".encode())
            count, size = count + 1, size + len(text)
    say(f"{file.name}: {count:,} documents, {size:,} characters")
