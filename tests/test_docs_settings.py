"""Every setting that a page writes down as YAML is one, at the place where it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from alia_ctx.config.base import FROM_CHECKPOINT
from alia_ctx.config.run import RunConfig
from alia_ctx.config.schema import build
from alia_ctx.errors import Problems
from tests.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FRAGMENT = re.compile(r"`((?:[\w-]+\.)*[\w-]+: [^`\n]+)`")
# Keys of files of Hugging Face's, and of a configuration before it is put together.
NO_SETTINGS = {"sliding_window", "include", "stage_defaults"}


@cache
def parts(part: type) -> dict[str, type]:
    """The dataclasses inside one, by the name under which they stand."""
    found: dict[str, type] = {}
    for name, hint in get_type_hints(part).items():
        for inside in (hint, *get_args(hint)):
            if is_dataclass(inside) and isinstance(inside, type):
                found |= {name: inside, **parts(inside)}
    return found


def mistakes(fragment: str) -> list[str]:
    """What is wrong with `a.b: value`: taken from the top where `a` is a key there, else
    as keys of whatever part has them.
    """
    key, _, text = fragment.partition(": ")
    *places, name = key.split(".")
    owners: list[Any] = [RunConfig] if not places else []
    if places:
        owner = parts(RunConfig).get(places[-1])
        owners = [owner] if owner else []
    elif name not in {f.name for f in fields(RunConfig)}:
        owners = [
            p
            for p in parts(RunConfig).values()
            if name in vars(p).get("__dataclass_fields__", {})
        ]
    if name in NO_SETTINGS or text == FROM_CHECKPOINT:
        return []
    wrong = []
    for value in text.split(" | "):
        attempts = [_problems(owner, name, yaml.safe_load(value)) for owner in owners]
        if not attempts or min(attempts, key=len):
            wrong.append(f"{key}: {value}")
    return wrong


def _problems(owner: type, name: str, value: object) -> list[str]:
    problems = Problems()
    build(owner, {name: value}, "", problems)
    return [str(p) for p in problems if p.key.split(".")[0] == name]


def fragments(page: Path) -> Iterator[str]:
    yield from FRAGMENT.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_as_they_are_written_load(page: Path) -> None:
    if page.name not in ("CHANGELOG.md", "log.md"):
        assert not [wrong for each in fragments(page) for wrong in mistakes(each)]


@pytest.mark.parametrize(
    "fragment, right",
    [
        ("pack.data: continue", True),
        ("data: continue", False),  # `data` is another key
        ("optimizer_state: keep", True),
        ("optimizer_state: kept", False),
        ("no_setting: 1", False),
        ("engine.context_split: balanced | zigzag", True),
        ("engine.context_split: balanced | twisted", False),
        ("stages.context: 4096", True),
        ("model: from_checkpoint", True),
    ],
)
def test_a_mistaken_setting_is_seen(fragment: str, right: bool) -> None:
    assert bool(mistakes(fragment)) != right


def test_there_are_settings_to_look_at() -> None:
    assert sum(1 for page in PAGES for _ in fragments(page)) > 10
