"""Words that a setting has to choose from, written as the documentation writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import ConfigError
from tests.paths import ROOT

NAMES = {"stages": "base", "sources": "gutenberg"}
TINY = ROOT / "configs" / "tiny.yaml"
Choice = tuple[str, str, tuple[Any, ...]]


def choices(hint: Any, place: str = "", form: str = "%s") -> Iterator[Choice]:
    """Every setting with words to choose from, how one is written there, and the words."""
    if dataclasses.is_dataclass(hint):
        for name, inner in get_type_hints(hint).items():
            yield from choices(inner, f"{place}.{name}".lstrip("."))
    elif get_origin(hint) is Literal:
        yield place, form, get_args(hint)
    elif get_origin(hint) in (dict, Mapping):
        name = NAMES.get(place.rpartition(".")[2])
        if name is not None:
            yield from choices(get_args(hint)[1], f"{place}.{name}")
    else:
        form = "[%s]" if get_origin(hint) in (list, tuple) else form
        for option in get_args(hint):
            yield from choices(option, place, form)


ALL = [*choices(RunConfig)]


def rules(action: Callable[[], Any]) -> str:
    try:
        action()
    except ConfigError as error:
        return str([f"{problem.key}: {problem.rule}" for problem in error.problems])
    return ""


def test_they_are_found() -> None:
    assert ("engine.fp8", "%s", ("off", "current", "blockwise")) in ALL
    assert any(form == "[%s]" for _, form, _ in ALL) and len(ALL) > 25


@pytest.mark.parametrize("number", range(max(len(words) for *_, words in ALL)))
def test_a_word_is_that_word(number: int, tmp_path: Path) -> None:
    """Plain, though YAML 1.1 takes `off` for false; as an override and in a file: of every
    setting its word with this number.
    """
    given = {place: form % words[number % len(words)] for place, form, words in ALL}
    overrides = [f"{place}={word}" for place, word in given.items()]
    said = rules(lambda: load_run(TINY, [f"root={tmp_path}", *overrides]))
    assert "one of the choices" not in said
    document: dict[str, Any] = {}
    for place, word in given.items():
        *parents, last = place.split(".")
        inner = document
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = word
    file = tmp_path / "run.yaml"
    file.write_text(f"include: {TINY}\nroot: {tmp_path}\n{written(document)}")
    assert "one of the choices" not in rules(lambda: load_run(file))


def written(document: dict[str, Any], depth: int = 0) -> str:
    """As YAML, with no quotes around a word."""
    return "".join(
        "  " * depth
        + (f"{k}:\n{written(v, depth + 1)}" if isinstance(v, dict) else f"{k}: {v}\n")
        for k, v in document.items()
    )


def test_what_is_no_choice_is_refused_still() -> None:
    for word in ("false", "no", "Off"):
        said = rules(lambda word=word: load_run(TINY, [f"engine.fp8={word}"]))
        assert "engine.fp8: not one of the choices" in said
    assert "engine.fp8" not in rules(lambda: load_run(TINY, ["engine.fp8=off"]))
