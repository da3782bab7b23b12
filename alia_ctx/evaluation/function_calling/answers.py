"""A model's answer -> the calls in it.

Tagged text is read by the rules of vLLM's hermes parser, as a served model's clients get
its calls: a text in which one call is broken is a text without calls. Other forms (lists
of JSON, `[Name(key=value)]`, glaive's and NVIDIA's tags) are read by the readers of
training data.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from alia_ctx.data.chat import RowError, ToolCall
from alia_ctx.data.chat.forms.calls import (
    calls_from_json,
    looks_pythonic,
    pythonic_calls,
)
from alia_ctx.errors import DataError
from alia_ctx.files import parse_json

_HERMES = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)
_OTHER_TAGS = re.compile(
    r"<TOOLCALL>(.*?)(?:</TOOLCALL>|$)|<functioncall>(.*?)(?:</functioncall>|$)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Args:
        text: its words; with a server that finds calls, what is left of them.
        tool_calls: (name, text of the arguments) as a server found them.
        fault: why there is no answer (the prompt is too long); it is wrong then.
        tokens: that it wrote; 0 where that is not known.
        cut: whether it was still writing at the last token.
    """

    text: str
    tool_calls: tuple[tuple[str, str], ...] = ()
    fault: str = ""
    tokens: int = 0
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "tool_calls": [list(call) for call in self.tool_calls],
            "fault": self.fault,
            "tokens": self.tokens,
            "cut": self.cut,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Answer:
        """The inverse of `to_json`; DataError for another form."""
        try:
            calls = tuple((str(name), str(text)) for name, text in data["tool_calls"])
            text, fault = str(data["text"]), str(data["fault"])
            return cls(text, calls, fault, int(data["tokens"]), bool(data["cut"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no answer of a model ({error!r})") from error


@dataclass(frozen=True)
class Calls:
    """The calls of an answer, in order; none, and `broken`, where it has what looks like
    calls and cannot be read.
    """

    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    broken: str = ""


def calls_of(answer: Answer) -> Calls:
    """The calls of an answer: those that a server found, else those of its text."""
    try:
        if answer.tool_calls:
            return Calls(tuple(_call(*call) for call in answer.tool_calls))
        return Calls(tuple(_calls_of_text(answer.text)))
    except (RowError, ValueError) as error:
        return Calls((), str(error))


def _calls_of_text(text: str) -> list[tuple[str, dict[str, Any]]]:
    if tagged := _HERMES.findall(text):
        return [_hermes(closed or open_) for closed, open_ in tagged]
    found: list[ToolCall] = []
    bare = text.strip()
    if other := _OTHER_TAGS.findall(text):
        for parts in other:
            found += calls_from_json("".join(parts))
    elif looks_pythonic(bare):
        found += pythonic_calls(bare)
    elif bare.startswith(("[", "{")) and '"name"' in bare:
        found += calls_from_json(bare)
    return [_call(call.name, call.arguments) for call in found]


def _hermes(text: str) -> tuple[str, dict[str, Any]]:
    value = parse_json(text)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f"a call without a name: {text.strip()[:80]}")
    arguments = value.get("arguments", {})
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return _call(value["name"], written)


def _call(name: str, arguments: str) -> tuple[str, dict[str, Any]]:
    value = parse_json(arguments) if arguments.strip() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{name}: arguments are no object: {arguments[:80]}")
    return name, value
