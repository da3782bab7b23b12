"""Text of this machine as sources: repositories of code, manuals, short documents.

Nothing is fetched but Debian packages of manuals, where `apt-get` can; no package is
imported, its files are only read. Everything is written as JSON lines with `id` and
`text`:

code.jsonl          Python packages, each a document: its files one after the other
manuals.jsonl       Debian manuals in Spanish, Catalan, Basque and Galician, each a book
short.jsonl         README and documentation files of Python packages
held-out.jsonl      repositories of packages whose distributions are in none of the others
held-out-short.jsonl manual pages and prose: kinds of text that are not trained on

made_from.json says which manuals they are.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alia_ctx.errors import DataError
from alia_ctx.files import write_json
from alia_ctx.progress import say
from scripts.smollm2.documents import (
    LONGEST,
    number,
    read_documents,
    write_documents,
)
from scripts.smollm2.installed import canonical, distributions, groups
from scripts.smollm2.manuals import FILES, MANUALS, write_manuals
from scripts.smollm2.notes import read_note

HELD_OUT_EVERY = 4  # every fourth distribution, by hash of its name, is held out
MADE_FROM = "made_from.json"
_SKIPPED = re.compile(
    r"/(tests?|testing|__pycache__|_vendor|site-packages)/|\.dist-info/"
)
_FEW = "too few Python packages are installed here; take an environment with more"


def write_corpus(
    directory: Path,
    *,
    characters: int,
    manuals: Path | None = None,
    manual_characters: int | None = None,
) -> None:
    """Write the corpus, at most about `characters` of code, unless it is there.

    manuals: a folder with manuals as this function wrote them elsewhere, for a machine
    that cannot get them. manual_characters: of them at most about as many.
    DataError where a source would be empty, or manuals are not as they are written.
    """
    require_same_manuals(directory, manuals)
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "held-out.jsonl").is_file():
        return
    folder, packages = manuals, None
    if folder is None:
        folder = directory / "debian"
        packages = write_manuals(folder)
    for name, most in zip(FILES, (manual_characters, None), strict=True):
        file = folder / name
        remedy = "name a folder with it as this recipe writes it (--manuals)"
        documents = _first(read_documents(file, remedy), most)
        write_documents(directory / name, documents, f"{file} has none; {remedy}")
    write_documents(directory / "short.jsonl", _short_documents(characters // 8), _FEW)
    write_documents(directory / "code.jsonl", _repositories(False, characters), _FEW)
    made_from = {"manuals": _name_of(manuals), "packages": packages}
    write_json(directory / MADE_FROM, made_from)
    held_out = _repositories(True, characters // 2)
    write_documents(directory / "held-out.jsonl", held_out, _FEW)


def require_same_manuals(directory: Path, manuals: Path | None) -> None:
    """DataError where the corpus is there and was written with other manuals than the ones
    that are asked for now, or these are not there; says what it was written without.
    """
    if not (directory / "held-out.jsonl").is_file():
        lacking = [n for n in FILES if manuals and not (manuals / n).is_file()]
        if lacking:
            raise DataError(
                f"{manuals}: has no {lacking[0]}; name a folder with manuals as this "
                "recipe writes them (--manuals OUTPUT/text/debian)"
            )
        return
    note = directory / MADE_FROM
    remedy = (
        f"remove it and leave --manuals out, or remove {directory} to write it anew"
    )
    was: dict[str, Any] = {"manuals": "not stated", "packages": None}
    if note.is_file():
        was = read_note(note, {"manuals": str}, remedy)
    if manuals is not None and was["manuals"] != _name_of(manuals):
        raise DataError(
            f"--manuals {manuals}: the text in {directory} is written already (manuals: "
            f"{was['manuals']}); leave it out, or name another --output"
        )
    if isinstance(was.get("packages"), list):
        lacking = [name for name in MANUALS if name not in was["packages"]]
        if lacking:
            say(
                f"the text was written without {', '.join(lacking)}, out of reach then; "
                "for one with them name another --output"
            )


def _name_of(manuals: Path | None) -> str:
    return "Debian's packages" if manuals is None else str(manuals.resolve())


def _first(
    documents: Iterator[tuple[str, str]], characters: int | None
) -> Iterator[tuple[str, str]]:
    """Documents up to about `characters` in all; None is all of them."""
    left = characters
    for name, text in documents:
        yield name, text
        if left is not None:
            left -= len(text)
            if left <= 0:
                return


# --- code -----------------------------------------------------------------------------


def _repositories(held_out: bool, characters: int) -> Iterator[tuple[str, str]]:
    """Volumes of each package: its sources in the order of their paths.

    Of a package that is held out no more than three, so that a mean over documents is
    not one over a package.
    """
    left = characters
    group_of = groups(distributions(_root()))
    for name, files in _packages():
        if held_out is not _is_held_out(group_of.get(name, name)):
            continue
        volume: list[str] = []
        size = count = 0
        for path, text in files:
            volume.append(f"# file: {path}\n{text.rstrip()}\n")
            size += len(volume[-1])
            if size > LONGEST:
                yield f"{name}/{count}", "\n".join(volume)
                left -= size
                count, volume, size = count + 1, [], 0
                if held_out and count == 3:
                    break
            if left < 0:
                return
        if size > 20_000:
            yield f"{name}/{count}", "\n".join(volume)
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
    for name in sorted(folders, key=number):
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
    """Documentation files, and the descriptions in the packages' metadata, of the
    distributions that are not held out.
    """
    root, left = _root(), characters
    found = distributions(root)
    group_of = groups(found)
    for distribution in sorted(found, key=lambda d: number(d.folder.name)):
        name = distribution.name
        if _is_held_out(group_of[f"dist:{canonical(name)}"]):
            continue
        texts = [(f"{name}/README", distribution.described)]
        # A folder may be another distribution's, which only happens to be called so.
        if (root / name).is_dir() and name in distribution.imports:
            texts += _files(root / name, ("*.md", "*.rst", "*.txt"))
        for path, text in texts:
            if len(text) > 1_000:
                yield path, text[:60_000]
                left -= min(len(text), 60_000)
        if left < 0:
            return


def _is_held_out(group: str) -> bool:
    return number(group.removeprefix("dist:")) % HELD_OUT_EVERY == 0


def _root() -> Path:
    return Path(sysconfig.get_paths()["purelib"])
