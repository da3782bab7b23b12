"""What the documents say of themselves and of the commands is true."""

from __future__ import annotations

import re
import shlex
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, cast, get_args, get_origin, get_type_hints

import click
import pytest
import typer
import yaml

import alia_ctx
from alia_ctx.cli.run_commands import app
from alia_ctx.config.run import RunConfig
from tests.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
FIGURES = sorted((DOCS / "benchmarks").glob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
STATUSES = ("Accepted", "Superseded by", "Rejected", "Proposed")


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def links(page: Path) -> list[tuple[Path, str]]:
    """Files that a page links to inside the repository, each with its anchor."""
    targets = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            targets.append(((page.parent / path).resolve() if path else page, anchor))
    return targets


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them: lower case, punctuation gone, hyphens for spaces."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(
        re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-")
        for head in heads
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [
        f"{target}#{anchor}"
        for target, anchor in links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert not missing


def test_the_index_reaches_every_page() -> None:
    reached, queue = set(), [DOCS / "index.md"]
    while queue:
        page = queue.pop()
        if page not in reached:
            reached.add(page)
            queue += [target for target, _ in links(page) if target.suffix == ".md"]
    assert set(PAGES) <= reached, {name_of(page) for page in set(PAGES) - reached}
    assert DOCS / "index.md" in [target for target, _ in links(ROOT / "README.md")]


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_has_a_status(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    number = page.name.split("-")[0]
    assert text.startswith(f"# {number}. ")
    [status] = re.findall(r"^Status: (.+)$", text, re.MULTILINE)
    assert status.startswith(STATUSES)
    for section in ("Context", "Decision", "Consequences"):
        assert f"\n## {section}\n" in text


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = [page.name.split("-")[0] for page in DECISIONS]
    assert numbers == [f"{n:04d}" for n in range(1, len(numbers) + 1)]


def scripts_of(page: Path) -> set[str]:
    """Names of the benchmarks whose command lines a page gives."""
    text = page.read_text(encoding="utf-8")
    return set(
        re.findall(
            r"python (?:-m )?(?:alia_ctx.cli.launch \S+ )?benchmarks[/.](\w+)", text
        )
    )


@pytest.mark.parametrize("page", FIGURES, ids=name_of)
def test_figures_name_the_script_that_makes_them(page: Path) -> None:
    scripts = scripts_of(page)
    assert scripts
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in scripts)


def test_every_benchmark_has_its_page() -> None:
    files = {file.stem for file in (ROOT / "benchmarks").glob("*.py")}
    named = set().union(*map(scripts_of, FIGURES))
    parts = {"pages", "peers", "gpu_products", "gpu_observed", "__init__"}
    assert not files - named - parts


# Commands ------------------------------------------------------------------------------

COMMAND = re.compile(
    r"(?<![\w/-])(?:alia-ctx|(?:torchrun|python)[^`\n]* -m alia_ctx\.cli) +([^`\n]*)"
)
LAUNCHER = re.compile(r"-m alia_ctx\.cli\.launch\b")


def commands(page: Path) -> list[list[str]]:
    """Command lines of alia-ctx in a page: words after the program's name."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        for words in COMMAND.findall(LAUNCHER.sub("", line)):
            found.append(shlex.split(words, comments=True))
    return [words for words in found if words and re.fullmatch(r"[a-z\-]+", words[0])]


def mistakes(words: list[str]) -> list[str]:
    """Commands and options of a line that the command line does not have."""
    if words == ["--help"]:
        return []
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    command = group.commands.get(words[0])
    if command is None:
        return [words[0]]
    options = {name for parameter in command.params for name in parameter.opts}
    options |= {n for parameter in command.params for n in parameter.secondary_opts}
    named = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    return [f"{words[0]} {name}" for name in named if name not in options | {"--help"}]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    if page.name not in ("CHANGELOG.md", "log.md"):
        assert not [m for words in commands(page) for m in mistakes(words)]


def test_a_mistaken_command_is_seen() -> None:
    assert mistakes(["train", "CONFIG", "--stage", "32k", "overrides=1"]) == []
    assert mistakes(["train", "CONFIG", "--stages", "32k"]) == ["train --stages"]
    assert mistakes(["trains"]) == ["trains"]
    assert len(commands(ROOT / "README.md")) > 5


# Settings ------------------------------------------------------------------------------


def settings(part: type) -> set[str]:
    """Names of a dataclass's fields, and of those of the dataclasses that they hold."""
    names = set()
    for name, annotation in get_type_hints(part).items():
        if get_origin(annotation) is ClassVar:
            continue
        names.add(name)
        for inside in [annotation, *get_args(annotation)]:
            if is_dataclass(inside):
                names |= settings(cast(type, inside))
    return names


def test_every_setting_is_documented() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    known = settings(RunConfig)
    assert len(known) > 60
    missing = sorted(known - words)
    assert not missing, "settings without a line in docs/configuration.md"


# Facts that stand twice ------------------------------------------------------------------


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == alia_ctx.__version__
    assert citation["cff-version"] == "1.2.0"


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sections[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds
