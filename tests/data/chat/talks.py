"""Generated conversations before they take a form."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

WORDS = [
    "París",
    'a "quoted" word',
    "it's",
    "línia\ndos",
    "日本語",
    "👩‍👩‍👧 ok",
    "C:\\dir\\file",
    "plain text",
    "a, b) = [c]",
    "{brace}",
    " lead",
    "1e3",
    "ﬁ ½",
    "<b>&amp;</b>",
]
NUMBERS = [0, 7, -3, 12345678901234567890, 1.5, -0.25]
NAMES = ["get_weather", "convert", "List Items", "sum.all", "trier_données"]


@dataclass
class Case:
    """A record of a form; the OpenAI messages (arguments as objects) and tools that it
    means.
    """

    record: dict[str, Any]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass
class Talk:
    """A conversation before it takes a form."""

    draw: random.Random
    tools: list[dict[str, Any]] = field(default_factory=list)

    def value(self, depth: int = 0) -> Any:
        kind = self.draw.randint(0, 6 if depth < 2 else 3)
        if kind <= 1:
            return self.draw.choice(WORDS)
        if kind == 2:
            return self.draw.choice(NUMBERS)
        if kind == 3:
            return self.draw.choice([True, False, None])
        if kind == 4:
            return [self.value(depth + 1) for _ in range(self.draw.randint(0, 3))]
        keys = self.draw.sample(["a", "clé", "b c", "z"], self.draw.randint(0, 3))
        return {key: self.value(depth + 1) for key in keys}

    def offer(self, nested: bool = True) -> None:
        for name in self.draw.sample(NAMES, self.draw.randint(1, 4)):
            keys = self.draw.sample(["city", "n", "opció"], self.draw.randint(0, 3))
            parameters = {
                "type": "object",
                "properties": {
                    key: {"type": "string", "description": self.draw.choice(WORDS)}
                    for key in keys
                },
                "required": keys[:1],
            }
            function = {
                "name": name,
                "description": self.draw.choice(WORDS),
                "parameters": parameters,
            }
            form = self.draw.randint(0, 2) if nested else 2
            self.tools.append(
                [
                    {"type": "function", "function": function},
                    {"type": "function", **function},
                    function,
                ][form]
            )

    def call(self) -> dict[str, Any]:
        tool = self.draw.choice(self.tools)
        function = tool.get("function", tool)
        arguments = {
            key: self.value()
            for key in function["parameters"]["properties"]
            if key in function["parameters"]["required"] or self.draw.random() < 0.6
        }
        return {"name": function["name"], "arguments": arguments}

    def calls(self, most: int = 3) -> list[dict[str, Any]]:
        return [self.call() for _ in range(self.draw.randint(1, most))]

    def words(self) -> str:
        return self.draw.choice(WORDS).strip() + self.draw.choice(
            ["", ".", " two", "\n\nx"]
        )


def turn_of(calls: list[dict[str, Any]], content: str | None = None) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant"}
    if content is not None:
        turn["content"] = content
    turn["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return turn


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text}


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def dialogue(talk: Talk, most_calls: int = 3, one_result: bool = False) -> list[Any]:
    """Turns of several requests; some call, and some calls get results and an answer."""
    turns: list[dict[str, Any]] = []
    for _ in range(talk.draw.randint(1, 3)):
        turns.append(user(talk.words()))
        if talk.tools and talk.draw.random() < 0.7:
            calls = talk.calls(most_calls)
            content = talk.words() if talk.draw.random() < 0.3 else None
            turns.append(turn_of(calls, content))
            count = 1 if one_result else len(calls)
            turns += [result(dumps(talk.value())) for _ in range(count)]
        turns.append(said(talk.words()))
    return turns


def nested(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools of any form as OpenAI has them."""
    functions = [{**tool.get("function", tool)} for tool in tools or []]
    for function in functions:
        function.pop("type", None)  # of a flat one
    return [{"type": "function", "function": f} for f in functions] or None
