"""Invented functions as real tools are: described parameters with choices, defaults, lists
and objects. The structure depends on a function's number alone, its words on the language.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from alia_ctx.data.chat.making.catalogue import Concept, concepts, domains, sentences
from alia_ctx.data.chat.making.concept_values import value_of
from alia_ctx.data.chat.making.invented import INVENTED_VERBS, invented_word
from alia_ctx.data.chat.making.parts import Part, Talk

# Shares, in percent or as weights; set with counts (of keywords, types and lengths, nothing
# else) of BFCL's tools at hand: two or three parameters, of texts, more than half required.
_PARAMETERS = (3, 12, 27, 31, 14, 8, 5)  # of 0, 1, ... 6
_OF_WORDS = 0.7  # of functions; the names of the others are no words
_OF_KIND = {
    "pool": 2.2,
    "enum": 1.0,
    "integer": 1.2,
    "number": 0.7,
    "boolean": 1.0,
    "array": 0.7,
    "object": 0.45,
    "rows": 0.35,
}
_REQUIRED = {
    "pool": 0.75,
    "enum": 0.35,
    "integer": 0.5,
    "number": 0.75,
    "boolean": 0.15,
    "array": 0.75,
    "object": 0.6,
    "rows": 0.8,
}
_SELDOM_REQUIRED = frozenset(
    {"limit", "retries", "timeout", "sort_by", "order", "output"}
)
_FORMATS = {"date": "date", "email": "email", "url": "uri"}
_UNKNOWN = {"string": 5, "integer": 3, "boolean": 1, "number": 1}


@dataclass(frozen=True)
class Invented:
    """A function of some number; its description and parameters are made by language."""

    number: int
    name: str
    talk: Talk
    nothing: bool  # whether the schema says of no parameters that none are required

    def description(self, language: str) -> str:
        """One to three sentences."""
        draw = random.Random(f"description {self.number} {language}")
        words = sentences(language)
        given = ""
        names = [_spaced(name) for name in self.talk.parts]
        if names and draw.random() < 0.6:
            told = ", ".join(names[:3])
            given = draw.choice(words["given"]).replace("{parameters}", told)
        whole = draw.choice(words["whole"])
        does = self._does(language)
        whole = whole.replace("{Does}", _capital(does)).replace("{does}", does)
        more = draw.sample(words["more"], draw.choice((0, 1, 1, 2, 2)))
        return " ".join([whole.replace("{given}", given), *more])

    def parameters(self, language: str) -> dict[str, Any]:
        """A JSON schema of an object."""
        draw = random.Random(f"parameters {self.number} {language}")
        parts = self.talk.parts.values()
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {
                part.name: self._described(part, language, draw) for part in parts
            },
        }
        required = [part.name for part in parts if part.required]
        return {**schema, "required": required} if required or self.nothing else schema

    def _does(self, language: str) -> str:
        verb, noun = self.talk.verb, self.talk.noun
        if verb is None or noun is None:
            return _spaced(self.name)
        does = verb.statements[language]
        # In Basque the verb stands behind what it is done with.
        order = (noun.texts[language], does)
        return " ".join(order if language == "eu" else order[::-1])

    def _described(
        self, part: Part, language: str, draw: random.Random
    ) -> dict[str, Any]:
        schema = dict(part.schema)
        if part.children:
            inner = [self._described(child, language, draw) for child in part.children]
            if schema["type"] == "array":
                (schema["items"],) = inner
                if draw.random() < 0.6:
                    schema["items"].pop("description", None)
            else:
                names = [child.name for child in part.children]
                schema["properties"] = dict(zip(names, inner, strict=True))
                needed = [child.name for child in part.children if child.required]
                if needed:
                    schema["required"] = needed
        if draw.random() < 0.98:
            told = self._told(part, language, draw)
            kind = schema.pop("type")
            schema = {"type": kind, "description": told, **schema}
            if draw.random() < 0.2:  # the order of keys is anybody's
                schema = {"description": told, **schema}
        return schema

    def _told(self, part: Part, language: str, draw: random.Random) -> str:
        words, schema = sentences(language), part.schema
        if part.concept is None:
            thing = self.name.rpartition("_")[2]
            told = draw.choice(words["told"])
            told = told.replace("{name}", part.name).replace("{thing}", thing)
        else:
            known = concepts()[part.concept].descriptions(language)
            told = draw.choice(known)
            if len(known) > 1 and draw.random() < 0.3:
                told = f"{known[0]} ({known[1]})"
        if draw.random() < 0.35 and schema["type"] not in (
            "boolean",
            "object",
            "array",
        ):
            example = str(value_of(part, language, draw))
            told += draw.choice(words["example"]).replace("{example}", example)
        noun = self.talk.noun
        if noun is not None and draw.random() < 0.4:
            about = draw.choice(words["about"])
            told += about.replace("{noun}", noun.texts[language])
        told += "."
        if draw.random() < 0.35:
            told += f" {draw.choice(words['notes'])}"
        chance = 0.35 if "enum" in schema else 0.0
        if draw.random() < chance:
            told += draw.choice(words["options"]).replace(
                "{options}", ", ".join(map(str, schema["enum"]))
            )
        if "default" in schema and draw.random() < 0.4:
            default = schema["default"]
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            told += draw.choice(words["default"]).replace("{default}", shown)
        return told


def functions_like_real_ones(count: int) -> Iterator[Invented]:
    """Function 0, 1, ...; a smaller count gives the first of a larger one."""
    names: set[str] = set()
    number = 0
    while len(names) < count:
        made = _function(number)
        number += 1
        if made.name not in names:
            names.add(made.name)
            yield made


def _function(number: int) -> Invented:
    draw = random.Random(f"function {number}")
    camel = draw.random() < 0.12
    if draw.random() < _OF_WORDS:
        domain = draw.choice(domains())
        verb, noun = draw.choice(domain.verbs), draw.choice(domain.nouns)
        name, chosen = f"{verb.key}_{noun.key}", domain.concepts
        service = draw.choice(domain.services)
        # As `service.name` is shown where names have no dots.
        name = f"{service}_{name}" if draw.random() < 0.2 else name
        talk = Talk(verb, noun, _parts(chosen, draw, 0.0, camel))
        if draw.random() < 0.25 and talk.parts:
            name += f"_by_{next(iter(talk.parts))}"
    else:
        thing = invented_word(draw)
        first = draw.choice(INVENTED_VERBS) if draw.random() < 0.7 else None
        name = f"{first or thing}_{thing if first else invented_word(draw)}"
        chosen = draw.choice(domains()).concepts
        talk = Talk(None, None, _parts(chosen, draw, 0.5, camel))
    return Invented(number, _styled(name, camel), talk, draw.random() < 0.7)


def _parts(
    keys: tuple[str, ...], draw: random.Random, unknown: float, camel: bool
) -> dict[str, Part]:
    """`unknown`: the share of parameters whose names are no words."""
    (count,) = draw.choices(range(len(_PARAMETERS)), _PARAMETERS)
    left = [concepts()[key] for key in keys]
    parts: dict[str, Part] = {}
    for _ in range(count):
        if draw.random() < unknown:
            part = _unknown(draw)
        elif left:
            weights = [_OF_KIND[_kind(concept)] for concept in left]
            (concept,) = draw.choices(left, weights)
            part = _part(concept, draw)
            # What is in an object is not asked for beside it once more.
            taken = {concept.key, *_inside(part)}
            left = [c for c in left if not taken & {c.key, *c.children}]
        else:
            break
        part = _in_style(part, camel)
        if part.name not in parts:
            parts[part.name] = part
    if draw.random() < 0.8:  # most people write what is required first
        parts = dict(sorted(parts.items(), key=lambda item: not item[1].required))
    return parts


def _inside(part: Part) -> Iterator[str]:
    for child in part.children:
        if child.concept is not None:
            yield child.concept
        yield from _inside(child)


def _kind(concept: Concept) -> str:
    return next(kind for kind in _OF_KIND if kind in concept.made_of)


def _part(concept: Concept, draw: random.Random) -> Part:
    kind = _kind(concept)
    chance = 0.1 if concept.key in _SELDOM_REQUIRED else _REQUIRED[kind]
    part = Part(
        draw.choice(concept.names), concept.key, {}, required=draw.random() < chance
    )
    made_of = concept.made_of
    if kind == "object":
        wanted = [*concept.children]
        if not made_of["required"]:
            wanted = draw.sample(wanted, draw.randint(2, 4))
        children = []
        for key in wanted:
            child = _part(concepts()[key], draw)
            needed = key in made_of["required"]
            children.append(
                replace(child, required=needed, schema=_bare(child, needed))
            )
        return replace(part, schema={"type": "object"}, children=_named(children))
    if kind == "rows":
        row = [_bare_part(concepts()[key], draw) for key in concept.children]
        item = Part("item", None, {"type": "object"}, children=_named(row))
        return replace(part, schema={"type": "array"}, children=(item,))
    if kind == "array":
        item = _bare_part(concepts()[made_of["array"]], draw)
        return replace(part, schema={"type": "array"}, children=(item,))
    schema = _simple_schema(concept, kind, draw)
    if not part.required and draw.random() < 0.8:
        schema["default"] = _default(part, schema, concept, kind, draw)
    return replace(part, schema=schema)


def _simple_schema(concept: Concept, kind: str, draw: random.Random) -> dict[str, Any]:
    made_of = concept.made_of
    if kind == "pool":
        pool = made_of["pool"]
        formatted = pool in _FORMATS and draw.random() < 0.15
        return {"type": "string", **({"format": _FORMATS[pool]} if formatted else {})}
    if kind == "enum":
        options = made_of["enum"]
        schema: dict[str, Any] = {"type": "string"}
        # Some only say in words which ones there are; any may be asked for then.
        if draw.random() < 0.75:
            most = min(len(options), 6)
            schema["enum"] = draw.sample(options, draw.randint(2, most))
        return schema
    schema = {"type": kind}
    if kind in ("integer", "number") and draw.random() < 0.06:
        least, most, _ = made_of[kind]
        schema |= {"minimum": least, "maximum": most}
    return schema


def _default(
    part: Part, schema: dict[str, Any], concept: Concept, kind: str, draw: random.Random
) -> Any:
    if kind in ("integer", "number"):
        return concept.made_of[kind][2]
    if kind == "boolean":
        usual = concept.made_of["boolean"]
        return usual if draw.random() < 0.8 else not usual
    return value_of(replace(part, schema=schema), "en", draw)


def _bare_part(concept: Concept, draw: random.Random) -> Part:
    part = _part(concept, draw)
    return replace(part, required=True, schema=_bare(part, True))


def _bare(part: Part, required: bool) -> dict[str, Any]:
    """What is required has no default."""
    return {k: v for k, v in part.schema.items() if not (required and k == "default")}


def _named(parts: list[Part]) -> tuple[Part, ...]:
    """Those of different names, as the properties of one object are."""
    return tuple({part.name: part for part in parts}.values())


def _unknown(draw: random.Random) -> Part:
    (kind,) = draw.choices([*_UNKNOWN], [*_UNKNOWN.values()])
    part = Part(invented_word(draw), None, {"type": kind}, draw.random() < 0.75)
    if not part.required and draw.random() < 0.8:
        return replace(
            part, schema={"type": kind, "default": value_of(part, "en", draw)}
        )
    return part


def _in_style(part: Part, camel: bool) -> Part:
    children = tuple(_in_style(child, camel) for child in part.children)
    return replace(part, name=_styled(part.name, camel), children=children)


def _styled(name: str, camel: bool) -> str:
    if not camel:
        return name
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _spaced(name: str) -> str:
    """`max_price`, `maxPrice` -> `max price`."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name)
    return words.replace("_", " ")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
