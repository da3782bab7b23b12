"""Conversations about functions, by grammar: what is asked, called, answered."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from alia_ctx.data.chat.conversation import Conversation, Message, ToolCall
from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.making.concept_values import in_order, value_of
from alia_ctx.data.chat.making.functions import Function
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.value_words import spoken_name
from alia_ctx.data.chat.making.values import NoValueError, inlined, value_for
from alia_ctx.data.chat.making.wording import Wording

Kind = Literal["single", "multiple", "parallel", "missing", "irrelevant", "multi_turn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TRIES = 20
# Of requests for several calls: that they are of one function, in one sentence.
_IN_ONE_SENTENCE = 0.6


@dataclass(frozen=True)
class Call:
    """A call that a conversation is about."""

    function: Function
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a user's turn is to say: the calls that it asks for, and the parameters of the
    first that it must keep back. `turn` is the number of its message, `wanted` whether
    a tool is there.
    """

    turn: int
    calls: tuple[Call, ...]
    kept_back: tuple[str, ...] = ()


@dataclass(frozen=True)
class MadeConversation:
    """A conversation, what it is, and what its requests must say."""

    conversation: Conversation
    kind: Kind
    language: str
    requests: tuple[Request, ...]


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


class Grammar:
    """Makes conversation number `index` of a seed; the same one whenever it is asked."""

    def __init__(
        self, functions: Sequence[Function], seed: int, limits: Limits | None = None
    ) -> None:
        self._functions = list(functions)
        self._seed, self._limits = seed, limits or Limits()

    def make(self, index: int, kind: Kind, language: str) -> MadeConversation | None:
        """None where none of the functions that were drawn serves."""
        draw = random.Random(f"{self._seed} {index} {kind} {language}")
        for _ in range(_TRIES):
            made = _Scene(self._functions, self._limits, language, draw).play(kind)
            if made is not None:
                return made
        return None


class _Scene:
    """One conversation while it is made."""

    def __init__(
        self,
        functions: list[Function],
        limits: Limits,
        language: str,
        draw: random.Random,
    ) -> None:
        self._functions, self._limits = functions, limits
        self._language, self._draw = language, draw
        self._words = LANGUAGES[language]
        self._wording = Wording(
            language, draw, quoted=limits.quoted, simple=limits.simple
        )
        self._messages: list[Message] = []
        self._requests: list[Request] = []
        self._ids = 0

    def play(self, kind: Kind) -> MadeConversation | None:
        function = self._draw.choice(self._functions)
        try:
            offered = getattr(self, f"_{kind}")(function)
        except NoValueError:
            return None
        if offered is None:
            return None
        tools = [*offered]
        self._draw.shuffle(tools)
        # Half of the tools that are spoken of in another language describe themselves in it.
        if not self._limits.simple and self._draw.random() < 0.5:
            tools = [tool.described_in(self._language) for tool in tools]
        text = write([tool.tool() for tool in tools]) if tools else None
        return MadeConversation(
            Conversation(tuple(self._messages), text),
            kind,
            self._language,
            tuple(self._requests),
        )

    # Kinds: each says the turns, and returns the tools that are offered.

    def _single(self, function: Function) -> list[Function]:
        self._ask([self._call(function)])
        return [function]

    def _multiple(self, function: Function) -> list[Function] | None:
        others = self._others([function], least=1)
        if not others:
            return None
        self._ask([self._call(function)])
        return [function, *others]

    def _parallel(self, function: Function) -> list[Function] | None:
        others = self._others([function], least=0)
        if alike := self._alike(function):
            self._ask_alike(function, alike)
            return [function, *others]
        functions = [function, *others][: self._draw.randint(1, 2)]
        count = max(2, len(functions), self._draw.randint(2, 3))
        calls: list[Call] = []
        for number in range(count):
            call = self._call(functions[number % len(functions)])
            if call in calls:
                return None  # a function without arguments is called once
            calls.append(call)
        self._ask(calls)
        return [function, *others]

    def _missing(self, function: Function) -> list[Function] | None:
        if not function.required:
            return None
        call = self._call(function)
        lacking = self._draw.choice(function.required)
        words = self._words
        told = {k: v for k, v in call.arguments.items() if k != lacking}
        self._say_request(Call(function, told))
        self._requests[-1] = Request(0, (Call(function, told),), (lacking,))
        self._assistant(
            self._draw.choice(words.missing).format(
                name=spoken_name(function.name), parameter=lacking
            )
        )
        if self._draw.random() < 0.5:
            given = Call(function, {lacking: call.arguments[lacking]})
            self._say(given, self._wording.given(function, given.arguments))
            self._calls([call])
            self._results([call])
        return [function, *self._others([function], least=0)]

    def _irrelevant(self, function: Function) -> list[Function] | None:
        others = self._others([function], least=1)
        if not others:
            return None
        words = self._words
        call = self._call(function)
        self._say_request(call)
        self._requests.clear()  # nothing is called, so nothing must be said
        decline = self._draw.choice(words.decline)
        self._assistant(decline.format(name=spoken_name(function.name)))
        return others

    def _multi_turn(self, function: Function) -> list[Function]:
        others = self._others([function], least=0)
        for number in range(self._draw.randint(2, 3)):
            call = self._call(self._draw.choice([function, *others]))
            self._say_request(call, follows=number > 0)
            self._calls([call])
            self._results([call])
        return [function, *others]

    # Turns.

    def _ask(self, calls: list[Call]) -> None:
        for call in calls:
            self._say_request(call)
        if len(calls) > 1:  # one turn asks for all
            turns = self._messages[-len(calls) :]
            del self._messages[-len(calls) :], self._requests[-len(calls) :]
            text = " ".join(turn.content or "" for turn in turns)
            self._requests.append(Request(len(self._messages), tuple(calls)))
            self._messages.append(Message("user", text))
        self._calls(calls)
        if self._draw.random() < 0.3:
            self._results(calls)

    def _ask_alike(self, function: Function, calls: list[Call]) -> None:
        """In one sentence: what the calls have in common is said once."""
        first = calls[0].arguments
        shared = {
            name: value
            for name, value in first.items()
            if all(_is_same(call.arguments[name], value) for call in calls)
        }
        each = [
            {name: v for name, v in call.arguments.items() if name not in shared}
            for call in calls
        ]
        text = self._wording.request_for_each(function, shared, each)
        self._requests.append(Request(len(self._messages), tuple(calls)))
        self._messages.append(Message("user", text))
        self._calls(calls)
        if self._draw.random() < 0.3:
            self._results(calls)

    def _say_request(self, call: Call, *, follows: bool = False) -> None:
        text = self._wording.request(call.function, call.arguments, follows=follows)
        self._say(call, text)

    def _say(self, call: Call, text: str) -> None:
        self._requests.append(Request(len(self._messages), (call,)))
        self._messages.append(Message("user", text))

    def _assistant(self, text: str) -> None:
        self._messages.append(Message("assistant", text))

    def _calls(self, calls: list[Call]) -> None:
        made = []
        for call in calls:
            self._ids += 1
            arguments = write(call.arguments)
            made.append(ToolCall(call.function.name, arguments, f"call_{self._ids}"))
        self._messages.append(Message("assistant", None, tuple(made)))

    def _results(self, calls: list[Call]) -> None:
        """The tools' results and the answer that quotes them."""
        answers = []
        asked = self._messages[-1].calls
        for call, made in zip(calls, asked, strict=True):
            result = self._draw.choice((self._draw.randint(1, 9999), self._thing()))
            content = write({"status": "ok", "result": result})
            self._messages.append(
                Message("tool", content, name=made.name, call_id=made.id)
            )
            answers.append(
                self._draw.choice(self._words.answer)
                .replace("{name}", spoken_name(call.function.name))
                .replace("{result}", str(result))
            )
        self._assistant(" ".join(answers))

    # What is drawn.

    def _thing(self) -> str:
        return self._draw.choice(self._words.things)

    def _others(self, taken: list[Function], least: int) -> list[Function]:
        """Other functions to offer, as many as the limit allows and there are; none that
        could serve in the place of one that is taken, or of another of them: each may be
        asked for.
        """
        rest = [
            other
            for other in self._functions
            if not any(_serves(other, function) for function in taken)
        ]
        most = min(len(rest), self._limits.tools - 1)
        if most < least:
            return []
        found: list[Function] = []
        for other in self._draw.sample(rest, self._draw.randint(least, most)):
            if not any(_serves(other, function) for function in found):
                found.append(other)
        return found

    def _call(self, function: Function) -> Call:
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
            if needed or not _is_default(value, schema):
                arguments[name] = value
        if len(arguments) > self._limits.arguments:
            raise NoValueError(f"{function.name} needs {len(arguments)} arguments")
        if function.talk is not None:
            arguments = in_order(arguments, function.talk.parts.values())
        return Call(function, arguments)

    def _alike(self, function: Function) -> list[Call]:
        """Two to four calls of it that differ in one or two values, or in most; often none,
        and where it has no such values. Whatever differs differs in each of them.
        """
        if self._limits.simple or self._draw.random() >= _IN_ONE_SENTENCE:
            return []
        first = self._call(function)
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
                _is_same(made[name], call.arguments[name]) == (name in varied)
                for name in made
                for call in calls
            ):
                continue  # the same once more, or days that changed their places
            calls.append(Call(function, made))
        return calls if len(calls) > 1 else []

    def _value(self, function: Function, name: str, schema: Any) -> Any:
        """Drawn once more where it is the default, as two truths often are."""
        talk = function.talk
        if talk is None:
            schema = inlined(schema, function.parameters)
        for _ in range(4):
            if talk is None:
                value = value_for(name, schema, self._language, self._draw)
            else:
                value = value_of(talk.parts[name], self._language, self._draw)
            if not _is_default(value, schema):
                break
        return value


def _is_same(one: Any, other: Any) -> bool:
    """As JSON: 1 is no true, and no 1.0 either."""
    return type(one) is type(other) and bool(one == other)


def _is_default(value: Any, schema: Any) -> bool:
    """1 is no true, as it is in Python."""
    if not isinstance(schema, dict) or "default" not in schema:
        return False
    default = schema["default"]
    return value == default and isinstance(value, bool) == isinstance(default, bool)


def _serves(other: Function, function: Function) -> bool:
    """Whether a request for `function` could mean `other`: both say the same of
    themselves, both do something with the same thing, or all words of one name are in
    the other's.
    """
    ours, theirs = _words_of_name(function.name), _words_of_name(other.name)
    return (
        ours <= theirs
        or theirs <= ours
        or _as_said(function.description) == _as_said(other.description)
        or (function.subject is not None and function.subject == other.subject)
    )


# Both are asked of each function for each conversation: 95% of the time without a cache.
@functools.cache
def _words_of_name(name: str) -> frozenset[str]:
    return frozenset(spoken_name(name).lower().split())


@functools.cache
def _as_said(description: str) -> str:
    return description.strip().lower()
