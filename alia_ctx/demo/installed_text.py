"""Real text in the Python packages of this environment: translations, documentation and
long sources.

Each generator yields `CorpusText` in an order that depends on the installed versions
alone, never on the file system. Nothing is imported from the packages: their files are
only read.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from io import StringIO
from itertools import chain, zip_longest
from pathlib import Path

from alia_ctx.errors import DataError
from alia_ctx.optional_packages import guard, reason

# Romance languages and Basque: the demo's tokenizer and tables should speak its first
# users' languages.
LANGUAGES = ("ca", "es", "eu", "gl", "pt_BR", "pt", "fr", "it", "ro")
TRANSLATED_PACKAGES = ("django", "sphinx", "wagtail")
CODE_PACKAGES = ("sympy", "numpy", "networkx", "torch", "transformers", "matplotlib")
LONG = 24_000  # characters: a little more than the demo's longest context
LONGEST = 120_000  # characters: no single document may be more than a few per cent of the corpus
_SHORTEST_TRANSLATION = 8_000
_SKIPPED_FOLDERS = frozenset(
    {
        "test",
        "tests",
        "testing",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "encodings",
        "idlelib",
    }
    | {
        "pydoc_data",
        "lib2to3",
        "ensurepip",
        "_vendor",
        "mathematica",
        "autolev",
        "_antlr",
    }
)


@dataclass(frozen=True)
class CorpusText:
    """One document: `id` is unique in the corpus; `licence` is what the package's metadata says."""

    id: str
    kind: str
    text: str
    package: str
    version: str
    licence: str


# --- translations ---------------------------------------------------------------------


def translations() -> Iterator[CorpusText]:
    """A document per language and package:

    its translated messages, one a line, without the English.
    """
    for language in LANGUAGES:
        for package in TRANSLATED_PACKAGES:
            root = _package_root(package)
            files = (
                sorted(root.rglob(f"locale/{language}/LC_MESSAGES/*.po"))
                if root
                else []
            )
            messages = list(
                dict.fromkeys(
                    chain.from_iterable(_messages(file, language) for file in files)
                )
            )
            text = "\n".join(messages)
            if len(text) >= _SHORTEST_TRANSLATION:
                yield _document("translations", f"{package}/{language}", text, package)


def _messages(file: Path, language: str) -> Iterator[str]:
    """Translated strings of a gettext file in file order, which follows the program;

    fuzzy ones are left out.
    """
    guard()
    try:
        from babel.messages.pofile import read_po
    except ImportError as error:
        raise DataError(
            f"reading translations needs {error.name} ({reason(error)}): "
            "pip install 'alia-ctx[demo]'"
        ) from error
    with (
        file.open("rb") as stream,
        redirect_stdout(StringIO()),
    ):  # babel prints a line for each odd plural
        catalog = read_po(stream, locale=language, ignore_obsolete=True)
    for message in catalog:
        if message.id and not message.fuzzy:
            strings = (
                (message.string,) if isinstance(message.string, str) else message.string
            )
            yield from filter(None, (string.strip() for string in strings or ()))


# --- documentation --------------------------------------------------------------------


def documentation(used: set[Path]) -> Iterator[CorpusText]:
    """The Python reference, READMEs, and API references;

    files that they draw on are added to `used`.
    """
    yield from _python_reference()
    yield from _package_papers()
    yield from _api_references(used)


def _python_reference() -> Iterator[CorpusText]:
    """The language reference that `help()` shows, its topics joined to volumes of about 60 kB."""
    from pydoc_data.topics import topics

    volume: list[str] = []
    number = 1
    for name in sorted(topics):
        volume.append(topics[name].strip())
        if sum(map(len, volume)) > 60_000:
            yield _document(
                "docs", f"python/reference-{number}", "\n\n".join(volume), "python"
            )
            volume, number = [], number + 1
    if sum(map(len, volume)) > LONG:
        yield _document(
            "docs", f"python/reference-{number}", "\n\n".join(volume), "python"
        )


def _package_papers() -> Iterator[CorpusText]:
    """READMEs (the description in a package's metadata) and long licence files."""
    for package in CODE_PACKAGES:
        try:
            distribution = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        description = str(distribution.metadata.json.get("description", ""))
        if len(description) > 8_000:
            yield _document("docs", f"{package}/README", description, package)
        for file in sorted(str(file) for file in distribution.files or ()):
            if (
                re.search(r"LICENSE|NOTICE|COPYING", Path(file).name)
                and ".dist-info" in file
            ):
                text = _read(Path(str(distribution.locate_file(file))))
                if text is not None and len(text) > 8_000:
                    yield _document(
                        "docs", f"{package}/{Path(file).name}", text, package
                    )


def _api_references(used: set[Path]) -> Iterator[CorpusText]:
    """The documentation strings of a module, in source order:

    an API reference of a chapter's length.
    """
    for package, name, file in _code_files(CODE_PACKAGES):
        source = _read(file)
        if source is None or source.count('"""') < 20:
            continue
        text = _documentation(source)
        if len(text) >= LONG:
            used.add(file)
            yield _document("docs", f"{package}/{name}:doc", text, package)


def _documentation(source: str) -> str:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    parts: list[str] = []
    _collect_documentation(tree, "", parts)
    return "\n\n".join(parts)


def _collect_documentation(node: ast.AST, path: str, parts: list[str]) -> None:
    """Append each definition's dotted name and docstring, and every other long multi-
    line string, in order.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{path}{child.name}"
            if len(ast.get_docstring(child, clean=False) or "") > 100:
                parts.append(name)
            _collect_documentation(child, f"{name}.", parts)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            if len(child.value) > 100 and "\n" in child.value:
                parts.append(inspect.cleandoc(child.value))
        else:
            _collect_documentation(child, path, parts)


# --- sources --------------------------------------------------------------------------


def sources(used: set[Path]) -> Iterator[CorpusText]:
    """Long Python sources that `documentation` has not drawn on."""
    for package, name, file in _code_files(("python", *CODE_PACKAGES)):
        text = _read(file) if file not in used else None
        if text is not None and len(text) >= LONG and not _is_table(text):
            yield _document(
                "sources", f"{package}/{name}", _without_header(text), package
            )


def _code_files(packages: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """(package, relative name, file) of Python files of some length, one package after the
    other in turn.

    Within a package the order is by hash of the name: arbitrary, yet the same on every machine.
    """
    queues = [_package_files(package) for package in packages]
    for turn in zip_longest(*queues):
        yield from filter(None, turn)


def _package_files(package: str) -> list[tuple[str, str, Path]]:
    root = (
        Path(sysconfig.get_paths()["stdlib"])
        if package == "python"
        else _package_root(package)
    )
    if root is None:
        return []
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        files = (Path(folder, name) for name in names if name.endswith(".py"))
        found += [file for file in files if file.stat().st_size >= LONG]
    named = ((file.relative_to(root).as_posix(), file) for file in found)
    return [
        (package, name, file)
        for name, file in sorted(named, key=lambda pair: _hash(pair[0]))
    ]


def _is_table(text: str) -> bool:
    """True for data written as code (digits, very long lines), which teaches a language
    model little.
    """
    digits = sum(map(text.count, "0123456789"))
    return digits > 0.08 * len(text) or max(map(len, text.splitlines())) > 1_000


def _without_header(text: str) -> str:
    """The source without its opening comment block, where that is a licence:

    the same in a thousand files.
    """
    header = re.match(r"(?:#[^\n]*\n|\s*\n)+", text)
    if header and re.search(r"licen[sc]e|copyright", header[0], re.IGNORECASE):
        return text[header.end() :]
    return text


# --- common ---------------------------------------------------------------------------


def _document(kind: str, name: str, text: str, package: str) -> CorpusText:
    version, licence = _origin(package)
    return CorpusText(
        name, kind, _shortened(text.strip()) + "\n", package, version, licence
    )


def _shortened(text: str) -> str:
    """At most `LONGEST` characters, cut at a line end."""
    if len(text) <= LONGEST:
        return text
    return (
        text[: text.rindex("\n", 0, LONGEST)]
        if "\n" in text[:LONGEST]
        else text[:LONGEST]
    )


def _origin(package: str) -> tuple[str, str]:
    """(version, licence) of a package as its metadata gives them."""
    if package == "python":
        return sysconfig.get_python_version(), "PSF-2.0"
    about = metadata.metadata(package)
    classifiers = [
        c.rsplit(" :: ", 1)[1]
        for c in about.get_all("Classifier") or ()
        if c.startswith("License")
    ]
    named = (
        about["License-Expression"]
        or (classifiers and classifiers[0])
        or (about["License"] or "").split("\n")[0]
    )
    return about["Version"], named or "see the package"


def _package_root(package: str) -> Path | None:
    """Directory of an installed package, found without importing it."""
    spec = find_spec(package)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
