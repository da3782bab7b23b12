"""What invented functions are about, and how people say it: the YAML files beside this one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

# The order of nouns, and of the verbs' forms, in subjects.yaml.
_ORDER = ("en", "es", "ca", "eu", "gl")


@dataclass(frozen=True)
class Concept:
    """What a parameter means: names for it, how its values are made, and how it is said."""

    key: str
    names: tuple[str, ...]
    made_of: Mapping[str, Any]
    words: Mapping[str, list[list[str]]]

    @property
    def is_open(self) -> bool:
        """Whether its text has no end of its own, and needs quotation marks."""
        return bool(self.made_of.get("open"))

    @property
    def children(self) -> tuple[str, ...]:
        """The concepts of an object's properties, or of a row's."""
        return tuple(self.made_of.get("object") or self.made_of.get("rows") or ())

    def descriptions(self, language: str) -> list[str]:
        """What it is, without a full stop; English where the language has none."""
        return self.words.get(language, self.words["en"])[0]

    def clauses(self, language: str, value: Any = None) -> list[str]:
        """How a request says it, with `{}` for the value; of a boolean, what means `value`."""
        words = self.words.get(language, self.words["en"])
        if "boolean" in self.made_of:
            return words[1] if value else words[2]
        return words[1]


@dataclass(frozen=True)
class Noun:
    """What a function does something with; `texts` by language, with their articles."""

    key: str
    texts: Mapping[str, str]
    domain: str


@dataclass(frozen=True)
class Verb:
    """`commands` and `statements` (third person) by language."""

    key: str
    commands: Mapping[str, str]
    statements: Mapping[str, str]


@dataclass(frozen=True)
class Domain:
    """Nouns that belong together, with verbs and concepts that go with them."""

    services: tuple[str, ...]
    verbs: tuple[Verb, ...]
    concepts: tuple[str, ...]
    nouns: tuple[Noun, ...]


def _read(name: str) -> dict[str, Any]:
    file = resources.files("alia_ctx.data.chat.making").joinpath(name)
    loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@functools.cache
def concepts() -> dict[str, Concept]:
    """All of them, by key."""
    return {
        key: Concept(
            key,
            tuple(entry["names"]),
            entry,
            {language: entry[language] for language in _ORDER if language in entry},
        )
        for key, entry in _read("concepts.yaml").items()
    }


@functools.cache
def domains() -> tuple[Domain, ...]:
    """In the order of their file."""
    content = _read("subjects.yaml")
    verbs = {key: _verb(key, forms) for key, forms in content["verbs"].items()}
    return tuple(
        Domain(
            tuple(entry["service"]),
            tuple(verbs[key] for key in entry["verbs"]),
            tuple(entry["concepts"]),
            tuple(
                Noun(key, dict(zip(_ORDER, texts, strict=True)), name)
                for key, texts in entry["nouns"].items()
            ),
        )
        for name, entry in content["domains"].items()
    )


def _verb(key: str, forms: list[str]) -> Verb:
    english, does, spanish, catalan, basque, basque_does, galician = forms
    commands = dict(
        zip(_ORDER, (english, spanish, catalan, basque, galician), strict=True)
    )
    return Verb(key, commands, {**commands, "en": does, "eu": basque_does})


@functools.cache
def sentences(language: str) -> dict[str, list[str]]:
    """Of a language, by what they are for."""
    found: dict[str, list[str]] = _sentences()[language]
    return found


@functools.cache
def pools() -> dict[str, Any]:
    """Texts by name; those of one language below its code."""
    found: dict[str, Any] = _sentences()["pools"]
    return found


@functools.cache
def _sentences() -> dict[str, Any]:
    return _read("sentences.yaml")
