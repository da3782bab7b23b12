"""How a request says the values of arguments: in a list, by their names, in clauses."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

from alia_ctx.data.chat.making.catalogue import concepts, sentences
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.parts import Part


class ValueWords:
    """Words values in a language with random numbers that are handed to it.

    `quoted`: all texts stand in quotation marks; `simple`: all arguments are listed.
    """

    def __init__(
        self, language: str, draw: random.Random, *, quoted: bool, simple: bool
    ) -> None:
        self._language, self._draw = language, draw
        self._quoted, self._simple = quoted, simple
        self._words = LANGUAGES[language]

    def listed(self, arguments: Mapping[str, Any]) -> str:
        """Arguments in a list, each by its parameter's name."""
        form = self._draw.choice(self._words.argument)
        parts = [
            form.replace("{parameter}", spoken_name(name)).replace(
                "{value}", _plainly(value, self._quoted, self._simple)
            )
            for name, value in arguments.items()
        ]
        return self.joined(parts)

    def joined(self, parts: list[str]) -> str:
        """Parts with commas, and the language's word before the last."""
        if len(parts) < 2:
            return "".join(parts)
        return ", ".join(parts[:-1]) + self._words.and_ + parts[-1]

    def clause(self, part: Part | None, value: Any) -> str | None:
        """In the words of what the parameter means; None where that is not known."""
        if part is None or part.concept is None:
            return None
        forms = concepts()[part.concept].clauses(self._language, value)
        return self._draw.choice(forms).replace("{}", self.said(value, part))

    def named(self, name: str, value: Any, *, by_name_first: bool = False) -> str:
        """A value by its parameter's name inside a sentence."""
        forms = self.forms("generic")
        if by_name_first:
            forms = [form for form in forms if not form.startswith("{value}")]
        form = self._draw.choice(forms)
        form = form.replace("{parameter}", spoken_name(name))
        return form.replace("{value}", self.said(value, None))

    def said(self, value: Any, part: Part | None) -> str:
        """A value as a sentence has it, without its parameter."""
        if isinstance(value, str):
            return self._text(value, part)
        if _is_nested(value, part):
            return json.dumps(value, ensure_ascii=False)
        if isinstance(value, list):
            item = part.children[0] if part is not None and part.children else None
            told = [self.said(one, item) for one in value]
            return self.joined(told) if self.now(0.7) else ", ".join(told)
        if isinstance(value, dict):
            return self._object(value, part)
        return json.dumps(value)

    def _object(self, value: dict[str, Any], part: Part | None) -> str:
        children = (
            {} if part is None else {child.name: child for child in part.children}
        )
        keys = {children[k].concept: k for k in value if k in children}
        if set(keys) == {"food", "quantity"}:  # a row of an order
            form = self._draw.choice(self.forms("each"))
            name = self.said(value[keys["food"]], None)
            form = form.replace("{quantity}", str(value[keys["quantity"]]))
            return form.replace("{name}", name)
        told = []
        for name, inner in value.items():
            clause = self.clause(children.get(name), inner)
            # As it is, where it is not known that it is but a name of the schema's.
            plain = name if part is None else spoken_name(name)
            told.append(clause or f"{plain} {self.said(inner, None)}")
        if part is None:
            return f"({', '.join(told)})"
        return (" " if self.now(0.7) else ", ").join(told)

    def _text(self, value: str, part: Part | None) -> str:
        """In quotation marks where it would not be seen how far it goes, or now and then."""
        concept = None if part is None or part.concept is None else part.concept
        known = concept is not None and not concepts()[concept].is_open
        blank = re.search(r"[,;:?]" if known else r"[\s,.;:?]", value)
        # What looks like one thing (a name, a date, a path) needs none.
        needs = self._quoted or (blank and not known) or self.now(0.2)
        mark = "'" if "'" not in value and not self._quoted and self.now(0.25) else '"'
        return f"{mark}{value}{mark}" if needs else value

    def forms(self, key: str) -> list[str]:
        """Sentences, or parts of them, by what they are for."""
        return sentences(self._language)[key]

    def now(self, chance: float) -> bool:
        """Drawn: whether it is so this time."""
        return self._draw.random() < chance


def _plainly(value: Any, quoted: bool, simple: bool) -> str:
    """In a list of `name = value`."""
    if isinstance(value, str):
        return f'"{value}"' if quoted or re.search(r"[\s,.;:?]", value) else value
    if not simple and _is_nested(value):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return ", ".join(_plainly(item, quoted, simple) for item in value)
    if isinstance(value, dict):
        inside = (f"{k} {_plainly(item, quoted, simple)}" for k, item in value.items())
        return f"({', '.join(inside)})"
    return json.dumps(value)


def _is_nested(value: Any, part: Part | None = None) -> bool:
    """Whether its parts, one after the other, would not say which are together: lists in a
    list, and lists in an object for which there are no words.
    """
    if isinstance(value, dict):
        return part is None and any(isinstance(v, list) for v in value.values())
    return isinstance(value, list) and any(isinstance(v, list) for v in value)


def spoken_name(name: str) -> str:
    """`getHTTPStatus`, `get_status` -> `get HTTP status`, `get status`."""
    words = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name)
    parts = re.split(r"[_\s.\-/]+", words)
    return " ".join(p if p.isupper() and len(p) > 1 else p.lower() for p in parts if p)
