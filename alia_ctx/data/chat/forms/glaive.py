"""glaiveai/glaive-function-calling-v2: `system` with the functions as JSON objects one after
another, and `chat` as one text of `USER:`, `ASSISTANT:` and `FUNCTION RESPONSE:`.

Calls are `<functioncall> {"name": "f", "arguments": '{"a": 1}'} <|endoftext|>`: JSON but
for the single quotes around the arguments, which hold JSON themselves.
"""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import pairwise
from typing import Any

from alia_ctx.data.chat.conversation import (
    Conversation,
    Message,
    RowError,
    ToolCall,
    tools_text,
)
from alia_ctx.data.chat.forms.calls import (
    ARGUMENT_KEYS,
    arguments_text,
    call_from,
)
from alia_ctx.data.chat.forms.definitions import (
    PARAMETER_KEYS,
    is_definition,
    name_of,
)
from alia_ctx.data.chat.forms.values import values_of
from alia_ctx.data.chat.json_text import parse, parse_at, write

_SPEAKER = re.compile(r"^[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n[ \t\r\n]*\Z")
_END = "<|endoftext|>"
_TAG = "<functioncall>"
_CALLED = re.compile(rf'{_TAG}\s*\{{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')
# What is meant as a definition of a function, where it is no JSON.
_BROKEN = re.compile(
    rf'\{{\s*"(?:name|description|type|function)"\s*:.*"(?:{"|".join(PARAMETER_KEYS)})"',
    re.DOTALL,
)
# Arguments in single quotes, from the quote on; what stands behind the closing one.
_QUOTED = re.compile(rf"\"(?:{'|'.join(ARGUMENT_KEYS)})\"\s*:\s*(?=')")
# Arguments are an object: only behind its end can they be closed. A text of many quotes, as
# models write that go in circles, is so not parsed at each of them.
_CLOSING = re.compile(r"(?<=\})(?:\s|\\n)*+'(?=\s*[,}])")
# What introduces the list; the chat template introduces tools in its own words.
_INTRODUCTION = re.compile(
    r"You are a helpful assistant with access to the following functions\.?"
    r"\s*Use them if required\s*-?",
    re.IGNORECASE,
)


def read(record: dict[str, Any]) -> Conversation:
    system, chat = record["system"], record["chat"]
    for name, value in (("system", system), ("chat", chat)):
        if value is not None and not isinstance(value, str):
            detail = f"{name} is {type(value).__name__}, no text"
            raise RowError("content_not_text", detail)
    prompt, tools = _system(system or "", chat or "")
    turns = _turns(chat or "")
    head = (Message("system", prompt),) if prompt else ()
    return Conversation((*head, *turns), tools)


def _system(text: str, chat: str) -> tuple[str, str | None]:
    """The prompt without the list of functions, and that list as text.

    Functions are what the set's own words introduce, what has a schema, and what the
    assistant calls: other objects of a prompt are its words.
    """
    text = text.strip().removeprefix("SYSTEM:").strip()
    introduction = _INTRODUCTION.search(text)
    begin = introduction.end() if introduction else 0
    called = {*_CALLED.findall(chat)}
    start = text.find("{", begin)
    while start >= 0:
        tools, stop = _functions_at(text, start, introduction is not None, called)
        if tools:
            before, after = text[:start].rstrip(), text[stop:].lstrip()
            if before.endswith("[") and after.startswith("]"):  # of an array
                before, after = before[:-1], after[1:]
            prompt = f"{_INTRODUCTION.sub('', before)}\n{after}"
            return prompt.strip(), tools_text(tools)
        with suppress(ValueError):  # what stands inside another object is a part of it
            stop = parse_at(text, start)[1]
        start = text.find("{", max(stop, start + 1))
    return text, None


def _functions_at(
    text: str, start: int, introduced: bool, called: set[str]
) -> tuple[list[str], int]:
    """The functions that stand one after another from `start` on, and where they end."""
    tools: list[str] = []
    position, meant = start, introduced
    while text[position : position + 1] == "{":
        try:
            value, end = parse_at(text, position)
        except ValueError as error:
            if introduced or _BROKEN.match(text, position):
                detail = f"system: {error} in {text[position : position + 80]!r}"
                raise RowError("unparsable_tools", detail) from error
            break
        name = name_of(value)
        if name is None and not introduced:
            break
        # One of them tells what its neighbours are, which may have no parameters.
        meant = meant or is_definition(value) or write(name) in called
        tools.append(text[position:end])
        position = end + len(text[end:]) - len(text[end:].lstrip(" \t\r\n,"))
    return (tools, position) if meant else ([], start)


def _turns(chat: str) -> list[Message]:
    marks = [*_SPEAKER.finditer(chat)]
    if not marks:
        raise RowError("empty", "chat has no USER: and no ASSISTANT:")
    if chat[: marks[0].start()].strip():
        detail = f"chat begins with {chat.strip()[:60]!r}"
        raise RowError("unparsable_messages", detail)
    _require_clear(chat, marks)
    ends = [mark.start() for mark in marks[1:]] + [len(chat)]
    turns = []
    for mark, end in zip(marks, ends, strict=True):
        words = chat[mark.end() : end].strip()
        if mark[1] == "USER":
            turns.append(Message("user", words))
        elif mark[1] == "FUNCTION RESPONSE":
            turns.append(Message("tool", words))
        else:
            turns.append(_assistant(words.removesuffix(_END).strip()))
    return turns


def _require_clear(chat: str, marks: list[re.Match[str]]) -> None:
    """RowError where a line that begins as a turn may be somebody's words.

    The set puts blank lines between turns, and `<|endoftext|>` behind what the assistant
    says. A chat that does so with some of its turns does with all.
    """
    apart = [_BLANK_LINE.search(chat[: mark.start()]) is not None for mark in marks[1:]]
    ended = [
        chat[before.end() : mark.start()].rstrip().endswith(_END)
        for before, mark in pairwise(marks)
        if before[1] == "ASSISTANT"
    ]
    after = [b for a, b in pairwise(marks) if a[1] == "ASSISTANT"]
    last = marks[-1]
    if last[1] == "ASSISTANT" and chat[last.end() :].rstrip().endswith(_END):
        ended.append(True)  # one that is cut off says nothing of the others
    indented = [mark for mark in marks[1:] if mark[0][0] in " \t"]
    doubtful = indented[:1]
    if any(apart) and not all(apart):
        doubtful.append(marks[1 + apart.index(False)])
    if any(ended) and not all(ended):
        doubtful.append(after[ended.index(False)])
    if doubtful:
        line = chat[doubtful[0].start() :].split("\n")[0]
        raise RowError(
            "ambiguous_turn",
            f"{line[:60]!r} begins a turn, or is what somebody says: the other turns "
            "are set apart otherwise",
        )


def _assistant(words: str) -> Message:
    """Words, and the calls after them."""
    said, *tagged = words.split(_TAG)
    found: list[ToolCall] = []
    for text in tagged:
        calls = tagged_calls(text)
        if not calls:
            raise RowError("unparsable_call", f"{_TAG} holds no call: {text[:80]!r}")
        found += calls
    said = said.strip().removesuffix(_END).strip() if found else said
    if _END in said:  # two answers in one turn, or somebody's words
        detail = f"{_END} stands in the middle of an answer: {said[:60]!r}"
        raise RowError("ambiguous_turn", detail)
    return Message("assistant", said or None if found else said, tuple(found))


def tagged_calls(text: str) -> tuple[ToolCall, ...]:
    """The calls of what stands between `<functioncall>` and the next one, or the end, of
    an answer: of training data and of a model that was trained on it.

    RowError where it is none.
    """
    text = text.strip().removesuffix(_END).strip()
    text = text.removesuffix("</functioncall>").strip()
    return tuple(map(call_from, values_of(_with_json_arguments(text))))


def _with_json_arguments(text: str) -> str:
    """The text with arguments in single quotes as JSON writes texts. Within these quotes
    stands JSON as it is, but for quotes with a backslash: to Python, which takes all
    backslashes off once, it would be other values.
    """
    with suppress(ValueError):
        parse(text)
        return text
    pieces, place = [], 0
    for match in _QUOTED.finditer(text):
        begin = match.end() + 1
        if begin < place:
            continue
        for closing in _CLOSING.finditer(text, begin):
            arguments = _arguments(text[begin : closing.start()])
            if arguments is not None:
                pieces += [text[place : match.end()], write(arguments)]
                place = closing.end()
                break
    return "".join([*pieces, text[place:]])


def _arguments(inside: str) -> str | None:
    """The text of an object; None where it is none, as one that ends elsewhere."""
    for candidate in (inside, inside.replace("\\'", "'")):
        with suppress(ValueError):
            if isinstance(value := parse(candidate), dict):
                # Line breaks between the fields go; the order and the numbers stay.
                return write(value) if "\n" in candidate else candidate.strip()
    with suppress(RowError):  # a dict of Python, or nothing
        return arguments_text(inside, "")
    return None
