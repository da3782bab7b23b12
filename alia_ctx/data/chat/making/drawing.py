"""What conversations are about, with random numbers: functions to offer, calls of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alia_ctx.data.chat.making.concept_values import in_order, value_of
from alia_ctx.data.chat.making.functions import Function
from alia_ctx.data.chat.making.likeness import is_default, is_same, serves
from alia_ctx.data.chat.making.values import NoValueError, inlined, value_for

# Of requests for several calls: that they are of one function, in one sentence.
_IN_ONE_SENTENCE = 0.6


@dataclass(frozen=True)
class Call:
    """A call that a conversation is about."""

    function: Function
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Most tools that are offered at once, and most arguments of a call; whether every
    text of a request stands in quotation marks, or only those that need them; whether
    requests only list their arguments (`simple`).
    """

    tools: int = 5
    arguments: int = 6
    quoted: bool = False
    simple: bool = False


class NotMadeError(Exception):
    """Why no conversation of a kind could be made."""


class Drawing:
    """Draws among functions, within limits, values in a language."""

    def __init__(
        self,
        functions: Sequence[Function],
        limits: Limits,
        language: str,
        draw: random.Random,
    ) -> None:
        self._functions, self._limits = functions, limits
        self._language, self._draw = language, draw

    def others(self, taken: list[Function], least: int) -> list[Function]:
        """Other functions to offer, as many as the limit allows and there are; none that
        could serve in the place of one that is taken, or of another of them: each may be
        asked for.
        """
        rest = [
            other
            for other in self._functions
            if not any(serves(other, function) for function in taken)
        ]
        most = min(len(rest), self._limits.tools - 1)
        if most < least:
            raise NotMadeError(self._why_alone())
        found: list[Function] = []
        for other in self._draw.sample(rest, self._draw.randint(least, most)):
            if not any(serves(other, function) for function in found):
                found.append(other)
        return found

    def _why_alone(self) -> str:
        """Why no other function can be offered."""
        if len(self._functions) < 2:
            return "two functions are needed, one beside another, and there is one"
        if self._limits.tools < 2:
            return "two functions are needed, and one is offered at most (--most-tools)"
        return (
            "all other functions could be meant too: a name or a description is alike"
        )

    def call(self, function: Function) -> Call:
        """Arguments for all that is required and for some of the rest."""
        arguments: dict[str, Any] = {}
        optional = 0
        for name, schema in function.properties.items():
            needed = name in function.required
            if not needed:
                if self._draw.random() < 0.6 or optional >= 2:
                    continue
                optional += 1
            try:
                value = self._value(function, name, schema)
            except NoValueError:
                if needed:
                    raise
                continue
            # What is the default anyway is left out by who asks and by who calls.
            if needed or not is_default(value, schema):
                arguments[name] = value
        if len(arguments) > self._limits.arguments:
            told = f"{function.name} needs {len(arguments)} arguments"
            raise NoValueError(f"{told}, more than --most-arguments")
        if function.talk is not None:
            arguments = in_order(arguments, function.talk.parts.values())
        return Call(function, arguments)

    def alike(self, function: Function) -> list[Call]:
        """Two to four calls of it that differ in one or two values, or in most; often none,
        and where it has no such values. Whatever differs differs in each of them.
        """
        if self._limits.simple or self._draw.random() >= _IN_ONE_SENTENCE:
            return []
        first = self.call(function)
        names = [n for n, v in first.arguments.items() if not isinstance(v, bool)]
        nested = any(isinstance(v, list | dict) for v in first.arguments.values())
        if nested or not names:
            return []
        most = self._draw.choice((1, 1, 2, len(names)))
        varied = self._draw.sample(names, min(most, len(names)))
        calls = [first]
        for _ in range(self._draw.choice((1, 1, 1, 2, 2, 3))):
            values = {
                name: self._value(function, name, function.properties[name])
                for name in varied
            }
            made = {**first.arguments, **values}
            if function.talk is not None:
                made = in_order(made, function.talk.parts.values())
            if any(
                is_same(made[name], call.arguments[name]) == (name in varied)
                for name in made
                for call in calls
            ):
                continue  # the same once more, or days that changed their places
            calls.append(Call(function, made))
        return calls if len(calls) > 1 else []

    def _value(self, function: Function, name: str, schema: Any) -> Any:
        """Drawn once more where it is the default, as two truths often are, or is not
        valid after all: a schema may say more than is read of it. NoValueError where it
        stays so.
        """
        talk, fault = function.talk, None
        if talk is None:
            schema = inlined(schema, function.parameters)
        for _ in range(4):
            if talk is None:
                value = value_for(name, schema, self._language, self._draw)
            else:
                value = value_of(talk.parts[name], self._language, self._draw)
            fault = function.fault_of_value(name, value) if talk is None else None
            if fault is None and not is_default(value, schema):
                break
        if fault is not None:
            raise NoValueError(fault)
        return value
