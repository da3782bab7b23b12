"""The house's habits that a machine can hold: sizes, packages, and no stale names."""

from __future__ import annotations

import ast
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "alia_ctx"
FILE_LINES, CLASS_LINES, COLUMNS = 400, 250, 100
PYTHON = sorted(
    file
    for folder in ("alia_ctx", "benchmarks", "scripts", "tests")
    for file in (ROOT / folder).rglob("*.py")
)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OTHER = [
    ROOT / "Makefile",
    ROOT / "pyproject.toml",
    *(ROOT / "configs").rglob("*.yaml"),
]
# What these say of the past is of the past: names stand there as they were.
HISTORY = {"docs/log.md", "CHANGELOG.md"}
# Names of version 0.1 that have gone, and that no look at the tree could recognise.
GONE = re.compile(
    r"\b(geometry\.[A-Z]\w+|cli_hf|CheckpointKeeper|\w*keeper of checkpoints|StateStore"
    r"|StateReader|tokenize_speed|mcore/(geometry|exchange|kernels|loss|records|store))\b"
)
# Python files and folders of others, told apart by where they begin.
FILE_NAME = re.compile(
    r"(?<![\w/.\-*{])((?:[\w\-]+/)*[\w\-]+\.(?:py|sbatch|yaml|md))\b"
)
MODULE_NAME = re.compile(r"\balia_ctx((?:\.\w+)+)")
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", PYTHON, ids=name_of)
def test_sizes(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= FILE_LINES, f"{len(lines)} lines; split it by what it knows"
    wide = [n for n, line in enumerate(lines, 1) if len(line) > COLUMNS]
    assert not wide, f"over {COLUMNS} columns: lines {wide}"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ClassDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= CLASS_LINES, f"class {node.name} has {length} lines"


def test_every_package_says_what_it_is() -> None:
    silent = [
        name_of(folder)
        for folder in sorted({file.parent for file in PACKAGE.rglob("*.py")})
        if not ast.get_docstring(tree(folder / "__init__.py"))
    ]
    assert not silent, "an __init__.py without a first sentence"


def test_every_package_has_its_tests() -> None:
    """tests/ mirrors the package. `spec` is tested through what checks and plans with
    it, `workflow` through the commands.
    """
    packages = {f.parent.relative_to(PACKAGE) for f in PACKAGE.rglob("__init__.py")}
    tests = {f.parent.relative_to(ROOT / "tests") for f in PYTHON if "tests" in f.parts}
    assert packages - {Path("spec"), Path("workflow")} <= tests


# Names that a text may speak of ----------------------------------------------------------


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of what a file says to a reader: all of a page, and the
    comments and docstrings of Python.
    """
    if file.suffix != ".py":
        yield from enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        return
    with tokenize.open(file) as stream:
        for token in tokenize.generate_tokens(stream.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    for node in ast.walk(tree(file)):
        holder = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, holder) and node.body:
            text = ast.get_docstring(node, clean=False) or ""
            yield from enumerate(text.splitlines(), node.body[0].lineno)


@cache
def our_files() -> frozenset[str]:
    """Every path of the repository, and each end of it that begins at a folder."""
    folders = (
        "alia_ctx",
        "benchmarks",
        "configs",
        "docs",
        "launch",
        "scripts",
        "tests",
    )
    paths = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file()]
    parts = [f.relative_to(ROOT).parts for f in [*paths, *ROOT.glob("*.*")]]
    return frozenset("/".join(p[start:]) for p in parts for start in range(len(p)))


@cache
def upstream_files() -> frozenset[str]:
    """Python files of the packages that workarounds speak of; each end of a path."""
    packages = ("megatron", "torch", "transformers")
    paths = [f for package in packages for f in (SITE_PACKAGES / package).rglob("*.py")]
    parts = [file.relative_to(SITE_PACKAGES).parts for file in paths]
    return frozenset("/".join(p[start:]) for p in parts for start in range(len(p)))


def is_file(name: str) -> bool:
    """Whether it is a file of ours, or one of an upstream package with its folder."""
    return name in our_files() or ("/" in name and name in upstream_files())


def is_module(dotted: str) -> bool:
    """Whether `.a.b.Name` below alia_ctx is a module, or what one defines or imports."""
    place, parts = PACKAGE, dotted.strip(".").split(".")
    for index, part in enumerate(parts):
        if (place / part).is_dir():
            place /= part
        elif (place / f"{part}.py").is_file():
            rest, file = parts[index + 1 :], place / f"{part}.py"
            return not rest or rest[0] in defined(file)
        else:
            return part in defined(place / "__init__.py")
    return True


@cache
def defined(file: Path) -> frozenset[str]:
    names = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return frozenset(names)


def stale(file: Path) -> list[str]:
    """What a file's text names and nobody has, each with its line."""
    problems = []
    for number, line in prose(file):
        names = [m.group(0) for m in GONE.finditer(line)]
        names += [m for m in FILE_NAME.findall(line) if not known(m, line)]
        names += [f"alia_ctx{m}" for m in MODULE_NAME.findall(line) if not is_module(m)]
        problems += [f"{name_of(file)}:{number}: {name}" for name in names]
    return problems


# What a reader or a command makes, and files of others that stand without their folder.
NOT_OURS = {
    "metadata.py",
    "modeling_rope_utils.py",
    "tools/preprocess_data.py",
    "report.md",
    "run.yaml",
    "mine.yaml",
    "quick.yaml",
    "step.md",
    "loss.md",
}
PLACEHOLDER = re.compile(r"\b(NAME|OUTPUT|CONFIG|NNNN)\b")


def known(name: str, line: str) -> bool:
    """Whether a file's name may stand in a line; what an address names is not ours."""
    if is_file(name) or name in NOT_OURS or PLACEHOLDER.search(name):
        return True
    return bool(re.search(r"\w+://\S*" + re.escape(name), line))


@pytest.mark.parametrize("file", [*PYTHON, *PAGES, *OTHER], ids=name_of)
def test_no_stale_name(file: Path) -> None:
    if name_of(file) not in HISTORY and file != Path(__file__):
        assert not stale(file)


def test_a_stale_name_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.name_of", lambda file: file.name)
    page = tmp_path / "page.md"
    page.write_text(
        "`spec/rope.py` and alia_ctx.spec.model.ModelSpec and docs/log.md stand,\n"
        "megatron/core/models/gpt/gpt_model.py too, and https://a.b/c/missing.py;\n"
        "`mcore/loss.py`, missing.py, alia_ctx.rope, alia_ctx.spec.model.Missing,\n"
        "`geometry.Balance` and docs/missing.md do not.\n"
    )
    assert [problem.split(": ")[1] for problem in stale(page)] == [
        "mcore/loss",
        "mcore/loss.py",
        "missing.py",
        "alia_ctx.rope",
        "alia_ctx.spec.model.Missing",
        "geometry.Balance",
        "docs/missing.md",
    ]
