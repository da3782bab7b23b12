"""What a user says to have a function called: its arguments in a list, or inside sentences."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from alia_ctx.data.chat.making.catalogue import concepts
from alia_ctx.data.chat.making.functions import Function
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.parts import Part
from alia_ctx.data.chat.making.value_words import ValueWords, spoken_name

# Shares of requests: that list `name = value` where sentences would do, that have a sentence
# before them, and of clauses that name their parameter though they need not.
_LISTED, _LISTED_UNKNOWN, _BEFORE, _NAMED, _RUN = 0.2, 0.35, 0.12, 0.12, 0.1
_TOGETHER = 0.4  # of calls that differ in one value: that it is said as one of several
_MOST_IN_ONE = 3


class Wording:
    """Words requests in a language with random numbers that are handed to it.

    `quoted`: all texts stand in quotation marks; `simple`: all arguments are listed.
    """

    def __init__(
        self, language: str, draw: random.Random, *, quoted: bool, simple: bool
    ) -> None:
        self._language, self._draw = language, draw
        self._simple = simple
        self._words = LANGUAGES[language]
        self._values = ValueWords(language, draw, quoted=quoted, simple=simple)

    def request(
        self, function: Function, arguments: Mapping[str, Any], *, follows: bool = False
    ) -> str:
        """A turn that asks for a call; `follows` another one in the same talk."""
        chance = _LISTED if self._is_of_words(function) else _LISTED_UNKNOWN
        if self._simple or self._draw.random() < chance:
            follows = follows and bool(arguments)
            return self._listed(
                function, arguments, self._words.follow if follows else self._words.ask
            )
        sentence = self._draw.choice(self._values.forms("follow" if follows else "ask"))
        first, second = self._clauses(function, arguments)
        text = self._sentence(sentence, function, first)
        if second:
            also = self._draw.choice(self._values.forms("also"))
            text = f"{text} {also.replace('{clauses}', second)}"
        if not follows and self._draw.random() < _BEFORE:
            text = f"{self._draw.choice(self._values.forms('before'))} {text}"
        return text

    def request_for_each(
        self,
        function: Function,
        shared: Mapping[str, Any],
        each: Sequence[Mapping[str, Any]],
    ) -> str:
        """A turn that asks for calls of one function in one sentence: what they have in
        common is said once, and then what is of each. No value is a list or an object.
        """
        sentence = self._draw.choice(self._values.forms("ask"))
        common, last = self._phrase(function, shared)
        told = self._together(function, each) or self._one_by_one(function, each)
        clauses = " ".join(filter(None, [common, told, last]))
        text = self._sentence(sentence, function, clauses)
        if self._draw.random() < _BEFORE:
            text = f"{self._draw.choice(self._values.forms('before'))} {text}"
        return text

    def _together(
        self, function: Function, each: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """`in Riga and Oslo`, where calls differ in one value and a language bends nothing."""
        ((name, *others), *_) = map(list, each)
        part = self._part(function, name)
        if others or part is None or part.concept is None or self._language == "eu":
            return None
        if not self._values.now(_TOGETHER):
            return None
        forms = concepts()[part.concept].clauses(self._language)
        values = self._values.joined(
            [self._values.said(one[name], part) for one in each]
        )
        return self._draw.choice(forms).replace("{}", values)

    def _one_by_one(self, function: Function, each: Sequence[Mapping[str, Any]]) -> str:
        """`in Riga at 10:15, and in Oslo at 12:30`."""
        parts = [
            " ".join(filter(None, self._phrase(function, arguments)))
            for arguments in each
        ]
        again = self._draw.choice(self._values.forms("again"))
        *before, end = parts
        return ", ".join(before) + again.replace("{clauses}", end)

    def _phrase(
        self, function: Function, arguments: Mapping[str, Any]
    ) -> tuple[str, str]:
        """Clauses one after the other, and what has to stand at the end of a sentence."""
        plain, named, lists, last = self._sorted_clauses(function, arguments)
        head = [" ".join([*plain, *lists])] if plain or lists else []
        return ", ".join([*head, *self._and(named)]), " ".join(last)

    def given(self, function: Function, arguments: Mapping[str, Any]) -> str:
        """The answer to a question for what was kept back."""
        if self._simple or self._draw.random() < 0.4:
            return self._listed(function, arguments, self._words.give)
        ((name, value),) = arguments.items()
        part = self._part(function, name)
        if isinstance(value, bool | list | dict):
            clause = self._values.clause(part, value)
            return f"{clause or self._values.named(name, value)}."
        return f"{self._values.said(value, part)}."

    def _is_of_words(self, function: Function) -> bool:
        return function.talk is not None and function.talk.noun is not None

    def _part(self, function: Function, name: str) -> Part | None:
        return None if function.talk is None else function.talk.parts.get(name)

    # Lists.

    def _listed(
        self, function: Function, arguments: Mapping[str, Any], forms: Sequence[str]
    ) -> str:
        sentence = self._draw.choice(forms if arguments else self._words.ask_bare)
        # str.format would read braces inside of values, which are put in last.
        text = sentence.replace("{name}", spoken_name(function.name))
        return _capital(text.replace("{args}", self._values.listed(arguments)))

    def _sentence(self, form: str, function: Function, clauses: str) -> str:
        do = self._do(function)
        text = form.replace("{Do}", _capital(do)).replace("{do}", do)
        # Values are put in last: there may be braces in them.
        return text.replace("{clauses}", f" {clauses}" if clauses else "")

    def _do(self, function: Function) -> str:
        talk = function.talk
        if (
            talk is None
            or talk.verb is None
            or talk.noun is None
            or self._values.now(_RUN)
        ):
            name = spoken_name(function.name)
            return self._draw.choice(self._values.forms("run")).replace("{name}", name)
        command, noun = talk.verb.commands, talk.noun.texts
        return f"{command[self._language]} {noun[self._language]}"

    def _clauses(
        self, function: Function, arguments: Mapping[str, Any]
    ) -> tuple[str, str]:
        """What the first sentence says of the arguments, and what a second one does."""
        plain, named, lists, last = self._sorted_clauses(function, arguments)
        if self._values.now(0.7):
            self._draw.shuffle(plain)
        plain += lists
        between = ", " if self._values.now(0.3) else " "
        if plain and len(plain) + len(named) > _MOST_IN_ONE and self._values.now(0.6):
            cut = self._draw.randint(1, min(len(plain), _MOST_IN_ONE))
            rest = [between.join(plain[cut:])] if plain[cut:] else []
            second = self._values.joined([*rest, *named])
            return " ".join([between.join(plain[:cut]), *last]), second
        head = [between.join(plain)] if plain else []
        return " ".join([", ".join([*head, *self._and(named)]), *last]).strip(), ""

    def _sorted_clauses(
        self, function: Function, arguments: Mapping[str, Any]
    ) -> tuple[list[str], list[str], list[str], list[str]]:
        """Clauses in a parameter's words; by its name; of lists; those that come last."""
        plain: list[str] = []
        named: list[str] = []
        lists: list[str] = []
        last: list[str] = []
        # Behind a list nothing may begin with a value, as much of Basque does.
        has_lists = any(isinstance(value, list) for value in arguments.values())
        # What begins with "and" ends a sentence; where a language lacks words, English has them.
        ands = tuple(words.and_.lstrip() for words in (self._words, LANGUAGES["en"]))
        for name, value in arguments.items():
            clause = None
            if not self._values.now(_NAMED):
                clause = self._values.clause(self._part(function, name), value)
            if clause is None:
                named.append(self._values.named(name, value, by_name_first=has_lists))
            elif isinstance(value, list):
                lists.append(clause)
            elif clause.startswith(ands):
                last.append(clause)
            else:
                plain.append(clause)
        return plain, named, lists, last

    def _and(self, parts: list[str]) -> list[str]:
        return [self._values.joined(parts)] if parts else []


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
