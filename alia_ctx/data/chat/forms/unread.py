"""What a record says under names that no reader of its form knows.

Names cannot be listed to their end, so tools are known by their shape too. Scores and
descriptions of the data stay beside: they are nothing that the assistant answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from alia_ctx.data.chat.conversation import Conversation, RowError, tools_text
from alia_ctx.data.chat.forms.beside import SYSTEM_COLUMNS, TOOLS_COLUMNS, is_same_list
from alia_ctx.data.chat.forms.calls import literal
from alia_ctx.data.chat.forms.definitions import PARAMETER_KEYS, parameters_of
from alia_ctx.data.chat.json_text import parse

# What readers take of a record, and what they take of a turn.
RECORD_COLUMNS = (
    *("messages", "conversations", "chat", "query", "answers", "chosen_response"),
    *SYSTEM_COLUMNS,
    *TOOLS_COLUMNS,
)
_OF_TURN = ("role", "from", "content", "value", "tool_calls", "function_call")
_READ = {*RECORD_COLUMNS, *_OF_TURN, "function_calls"}
# When2Call: what there was before a tool was taken away, so that none fits.
_BEFORE = "orig_tools"
# TRL gives them to the set's own template, which shows them.
_TEMPLATE = "chat_template_kwargs"
_PROMPTS = re.compile(
    r"(system|developer|custom)_?(prompt|message|instruction|content|text)s?"
    r"|developer|instructions|documents",
    re.IGNORECASE,
)
_TOOLS = re.compile(
    r"(available|offered)_?(tool|function|api)s"
    r"|(tool|function|api)s?_?(definition|schema|spec|declaration|list)s?",
    re.IGNORECASE,
)
_PICTURES = re.compile(r"(image|picture|video|audio)s?", re.IGNORECASE)


def require_nothing_unread(
    record: Mapping[str, Any], conversation: Conversation
) -> None:
    """RowError where the record, or a turn of it, has tools, prompts, documents or
    pictures under a name that is not read, and that the conversation has not.
    """
    for where, name, value in _fields(record):
        if name in _READ or name == _BEFORE or not _holds(value):
            continue
        place, lost = f"{where}{name}", False
        if _PICTURES.fullmatch(name):
            raise RowError("content_not_text", f"{place} is no text")
        if name == _TEMPLATE:
            for key, inner in _members(value):
                if _is_shown(inner) and not _has(record, conversation, inner):
                    place, lost = f"{place}.{key}", True
                    break
        elif _PROMPTS.fullmatch(name):
            lost = not _has(record, conversation, value)
        elif _TOOLS.fullmatch(name) and not _is_list_of(conversation, value):
            lost = conversation.tools is None or _definition(value) is not None
        elif conversation.tools is None and (found := _definition(value)) is not None:
            place, lost = place + found, True
        if lost:
            raise RowError(
                "unread_column",
                f"{place} holds tools, a prompt or documents that the turns have not, and "
                "is not read; put tools into `tools`, others into a turn, or remove it",
            )


def _fields(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Where, name and value of what a record and its turns have."""
    yield from (("", name, value) for name, value in record.items())
    for number, turn in enumerate(_turns(record)):
        for name, value in turn.items():
            yield f"turn {number}: ", name, value


def _turns(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns as they are written; none where they are no objects."""
    turns = record.get("messages") or record.get("conversations")
    if isinstance(turns, str):
        with suppress(ValueError):
            turns = parse(turns)
    turns = turns if isinstance(turns, list) else []
    return [turn for turn in turns if isinstance(turn, dict)]


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Of an object, or of its text; a text that is none is one by itself."""
    if isinstance(value, str):
        with suppress(RowError):
            value = literal(value)
    yield from value.items() if isinstance(value, dict) else [("", value)]


def _is_shown(value: Any) -> bool:
    """Whether a template shows what it is given: switches (`low`, true) choose alone."""
    return _holds(value) and (not isinstance(value, str) or " " in value.strip())


def _holds(value: Any) -> bool:
    """Whether there is anything in a value: Arrow has objects whose fields are all null."""
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds, value))
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _has(record: Mapping[str, Any], conversation: Conversation, value: Any) -> bool:
    """Whether the conversation has a value as its tools, or the longest text of each of
    its items in a turn; a system prompt may be as it was before its tools were taken out.
    """
    if not [*_texts(value)]:
        return isinstance(value, bool | int | float)
    said = [message.content or "" for message in conversation.messages]
    first = next(iter(_turns(record)), {})
    said += _texts([record.get("system"), first.get("content"), first.get("value")])
    items = map(_texts, value if isinstance(value, list) else [value])
    longest = [max(texts, key=len, default="").strip() for texts in items]
    whole = [re.compile(rf"(?<!\w){re.escape(one)}(?!\w)") for one in longest]
    return _is_list_of(conversation, value) or all(
        any(map(one.search, said)) for one in whole
    )


def _is_list_of(conversation: Conversation, value: Any) -> bool:
    """Whether a value is the conversation's tools."""
    try:
        return is_same_list(tools_text(value), conversation.tools)
    except (RowError, ValueError):
        return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _definition(value: Any) -> str | None:
    """Where in a value a function is defined: an object, or its text, with a name and a
    schema of parameters. A call has a name and parameters too, and no schema.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        if not any(name in value for name in PARAMETER_KEYS):
            return None
        try:
            return _definition(literal(value))
        except RowError:
            return None
    if isinstance(value, list | tuple):
        return next((p for item in value if (p := _definition(item)) is not None), None)
    if not isinstance(value, dict):
        return None
    nested = value.get("function")
    function = nested if isinstance(nested, dict) else value
    described = isinstance(function.get("description"), str)
    for parameters in parameters_of(value):
        is_object = parameters.get("type") == "object"
        if described or is_object or "properties" in parameters:
            return ""
    for key, item in value.items():
        if (inner := _definition(item)) is not None:
            return f".{key}{inner}"
    return None
