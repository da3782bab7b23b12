"""A model's answer -> the calls in it.

Tagged text is read by the rules of vLLM's hermes parser, as a served model's clients get
its calls: a call has `name` and `arguments`, whatever these are, and a text in which one
is broken is a text without calls. Other forms (JSON of calls, `[Name(key=value)]`, the
tags of glaive, NVIDIA, Llama 3 and Mistral) are read by the readers of training data.
Calls that a model only considers, in its reasoning, are none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alia_ctx.data.chat import RowError, ToolCall
from alia_ctx.data.chat.forms.calls import (
    arguments_text,
    call_from,
    looks_pythonic,
    pythonic_calls,
)
from alia_ctx.data.chat.forms.glaive import tagged_calls
from alia_ctx.data.chat.forms.values import values_of
from alia_ctx.data.chat.reading_back import OPEN, hermes_calls
from alia_ctx.data.chat.reasoning import split_reasoning
from alia_ctx.errors import DataError
from alia_ctx.files import parse_json

# Llama 3's `<|python_tag|>` and `<function=name>` and Mistral's `[TOOL_CALLS]` as in the
# chat templates of these models and their parsers in vLLM; a new call may follow each tag.
_OTHER_TAGS = re.compile(
    r"<TOOLCALL>(?P<nvidia>.*?)(?:</TOOLCALL>|$)"
    r"|<functioncall>(?P<glaive>.*?)(?:</functioncall>|(?=<functioncall>)|$)"
    r"|<function=(?P<name>[^<>\s]+)>(?P<arguments>.*?)(?:</function>|(?=<function=)|$)"
    r"|<\|python_tag\|>(?P<llama>.*?)(?=<\|python_tag\|>|<\|eo[tm]_id\|>|$)"
    r"|\[TOOL_CALLS\](?P<mistral>.*?)(?=\[TOOL_CALLS\]|$)",
    re.DOTALL,
)
_OF_MISTRAL = re.compile(
    r"\s*(?P<name>[^\s\[\]{}\"]+?)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*"
    r"(?P<arguments>\{.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Args:
        text: its words, reasoning among them with the tag that a prompt opened; with a
            server that finds calls, what is left of them.
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
    """The calls of an answer, in order: names, and arguments as JSON's types; none, and
    `broken`, where it has what looks like calls and cannot be read. `content` is what is
    said before them, behind the reasoning.
    """

    calls: tuple[tuple[str, Any], ...] = ()
    broken: str = ""
    content: str = ""

    def with_objects(self) -> Calls:
        """These calls where the arguments of all are objects; else none, and `broken`. So
        does BFCL (`is_function_calling_format_output`), also for relevance.
        """
        for name, arguments in self.calls:
            if not isinstance(arguments, dict):
                written = json.dumps(arguments)[:80]
                return Calls((), f"{name}: arguments are no object: {written}")
        return self


def calls_of(answer: Answer) -> Calls:
    """The calls of an answer: those that a server found, else those of its text, without
    what it reasoned before.
    """
    try:
        if answer.tool_calls:
            calls = [(name, parse_json(given)) for name, given in answer.tool_calls]
            return Calls(tuple(calls), content=answer.text)
        _, text = reasoning_and_words(answer)
        calls, start = _calls_in(text)
    except (RowError, ValueError) as error:
        return Calls((), str(error))
    return Calls(tuple(calls), content=text[:start].strip() if calls else "")


def reasoning_and_words(answer: Answer) -> tuple[str, str]:
    """What a model reasoned, "" for nothing, and the rest of its text: what it said, and
    its calls, whose values may spell the tags of reasoning.
    """
    return split_reasoning(answer.text, _written_calls)


def _written_calls(text: str) -> str:
    try:
        calls, _ = _calls_in(text)
        return json.dumps(calls, ensure_ascii=False) if calls else ""
    except (RowError, ValueError, RecursionError):  # nested as deep as Python reads
        return ""


def _calls_in(text: str) -> tuple[list[tuple[str, Any]], int]:
    """Calls, and where the first begins; RowError or ValueError where one is broken."""
    if (start := text.find(OPEN)) >= 0:
        return hermes_calls(text), start
    first = _OTHER_TAGS.search(text)
    others = [(call.name, parse_json(call.arguments)) for call in _other_calls(text)]
    return others, first.start() if first else 0


def _other_calls(text: str) -> list[ToolCall]:
    tagged = [*_OTHER_TAGS.finditer(text)]
    bare = text.strip()
    if tagged:
        return [call for match in tagged for call in _tagged(match)]
    if looks_pythonic(bare):
        return [*pythonic_calls(bare)]
    return [*_json_calls(bare)] if bare.startswith(("[", "{")) else []


def _tagged(match: re.Match[str]) -> Sequence[ToolCall]:
    """The calls of a tag."""
    if match["name"]:
        arguments = arguments_text(match["arguments"], match["name"])
        return [ToolCall(match["name"], arguments)]
    if named := _OF_MISTRAL.fullmatch(match["mistral"] or ""):
        return [ToolCall(named["name"], arguments_text(named["arguments"], ""))]
    if match["glaive"] is not None:
        return tagged_calls(match["glaive"])
    return [call_from(value) for value in values_of(match[match.lastgroup or 0])]


def _json_calls(text: str) -> tuple[ToolCall, ...]:
    """Calls of a text that is JSON of calls; none where it is other data, which may have
    names too. RowError or ValueError where it breaks off as calls do, or mixes both.
    """
    try:
        values = values_of(text)
    except RowError:
        if '"name"' in text and re.search(r'"(arguments|parameters)"\s*:', text):
            raise
        return ()
    are_calls = [_is_call(value) for value in values]
    if not any(are_calls):
        return ()
    if not all(are_calls):
        raise ValueError(f"calls beside what is none: {text[:80]}")
    return tuple(call_from(value) for value in values)


def _is_call(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    nested = value.get("function")
    call = nested if isinstance(nested, dict) else value
    return isinstance(call.get("name"), str) and (
        "arguments" in call or "parameters" in call
    )
