"""Conversations about functions, by grammar: what is asked, called, answered."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from alia_ctx.data.chat.conversation import Conversation, Message, ToolCall
from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.making.drawing import Call, Drawing, Limits, NotMadeError
from alia_ctx.data.chat.making.functions import Function
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.likeness import is_same
from alia_ctx.data.chat.making.value_words import spoken_name
from alia_ctx.data.chat.making.values import NoValueError
from alia_ctx.data.chat.making.wording import Wording

Kind = Literal["single", "multiple", "parallel", "missing", "irrelevant", "multi_turn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TRIES = 20


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


class Grammar:
    """Makes conversation number `index` of a seed; the same one whenever it is asked."""

    def __init__(
        self, functions: Sequence[Function], seed: int, limits: Limits | None = None
    ) -> None:
        self._functions = list(functions)
        self._seed, self._limits = seed, limits or Limits()

    def make(self, index: int, kind: Kind, language: str) -> MadeConversation:
        """NotMadeError where none of the functions that were drawn serves, with what was
        most often the cause.
        """
        draw = random.Random(f"{self._seed} {index} {kind} {language}")
        causes: Counter[str] = Counter()
        for _ in range(_TRIES):
            scene = _Scene(self._functions, self._limits, language, draw)
            try:
                return scene.play(kind)
            except (NotMadeError, NoValueError) as error:
                causes[str(error)] += 1
        raise NotMadeError(causes.most_common(1)[0][0])


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
        self._drawn = Drawing(functions, limits, language, draw)
        self._wording = Wording(
            language, draw, quoted=limits.quoted, simple=limits.simple
        )
        self._messages: list[Message] = []
        self._requests: list[Request] = []
        self._ids = 0

    def play(self, kind: Kind) -> MadeConversation:
        function = self._draw.choice(self._functions)
        tools = [*getattr(self, f"_{kind}")(function)]
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
        self._ask([self._drawn.call(function)])
        return [function]

    def _multiple(self, function: Function) -> list[Function]:
        others = self._drawn.others([function], least=1)
        self._ask([self._drawn.call(function)])
        return [function, *others]

    def _parallel(self, function: Function) -> list[Function]:
        others = self._drawn.others([function], least=0)
        if alike := self._drawn.alike(function):
            self._ask_alike(function, alike)
            return [function, *others]
        functions = [function, *others][: self._draw.randint(1, 2)]
        count = max(2, len(functions), self._draw.randint(2, 3))
        calls: list[Call] = []
        for number in range(count):
            call = self._drawn.call(functions[number % len(functions)])
            if call in calls:  # a function without arguments is called once
                raise NotMadeError(
                    "a function has no arguments to tell two calls apart"
                )
            calls.append(call)
        self._ask(calls)
        return [function, *others]

    def _missing(self, function: Function) -> list[Function]:
        if not function.required:
            some = any(other.required for other in self._functions)
            which = "one that was drawn" if some else "any function"
            raise NotMadeError(f"no parameter of {which} is required")
        call = self._drawn.call(function)
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
            self._say([given], self._wording.given(function, given.arguments))
            self._calls([call])
            self._results([call])
        return [function, *self._drawn.others([function], least=0)]

    def _irrelevant(self, function: Function) -> list[Function]:
        others = self._drawn.others([function], least=1)
        words = self._words
        call = self._drawn.call(function)
        self._say_request(call)
        self._requests.clear()  # nothing is called, so nothing must be said
        decline = self._draw.choice(words.decline)
        self._assistant(decline.format(name=spoken_name(function.name)))
        return others

    def _multi_turn(self, function: Function) -> list[Function]:
        others = self._drawn.others([function], least=0)
        for number in range(self._draw.randint(2, 3)):
            call = self._drawn.call(self._draw.choice([function, *others]))
            self._say_request(call, follows=number > 0)
            self._calls([call])
            self._results([call])
        return [function, *others]

    # Turns.

    def _ask(self, calls: list[Call]) -> None:
        """One turn, a sentence or some for each."""
        said = [self._wording.request(c.function, c.arguments) for c in calls]
        self._asked(calls, " ".join(said))

    def _ask_alike(self, function: Function, calls: list[Call]) -> None:
        """In one sentence: what the calls have in common is said once."""
        first = calls[0].arguments
        shared = {
            name: value
            for name, value in first.items()
            if all(is_same(call.arguments[name], value) for call in calls)
        }
        each = [
            {name: v for name, v in call.arguments.items() if name not in shared}
            for call in calls
        ]
        self._asked(calls, self._wording.request_for_each(function, shared, each))

    def _asked(self, calls: list[Call], text: str) -> None:
        self._say(calls, text)
        self._calls(calls)
        if self._draw.random() < 0.3:
            self._results(calls)

    def _say_request(self, call: Call, *, follows: bool = False) -> None:
        text = self._wording.request(call.function, call.arguments, follows=follows)
        self._say([call], text)

    def _say(self, calls: list[Call], text: str) -> None:
        self._requests.append(Request(len(self._messages), tuple(calls)))
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
