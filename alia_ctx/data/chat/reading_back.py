"""What a server reads of an assistant's turn whose calls are written as Hermes does.

A call is the JSON between `<tool_call>` and the next `</tool_call>`, wherever that stands:
also inside a string. So what a template writes need not be what comes back.
"""

from __future__ import annotations

import json
import re
from typing import Any

from alia_ctx.data.chat.conversation import Message, RowError
from alia_ctx.data.chat.json_text import leaves, parse, plain
from alia_ctx.files import parse_json

# Of all forms that readers of calls know: what they stand in is read by none of them as meant.
_TAG = re.compile(
    r"</?(?:tool_call|tool_response|tools|functioncall|TOOLCALL)>|\[/?TOOL_CALLS\]"
)
OPEN = "<tool_call>"
_CALL = re.compile(rf"{OPEN}(.*?)</tool_call>|{OPEN}(.*)", re.DOTALL)


def tag_in(value: Any) -> str | None:
    """The first tag of calls in a value's texts, keys included; None without any."""
    for leaf in leaves(value):
        if isinstance(leaf, str) and (match := _TAG.search(leaf)):
            return match[0]
    return None


def hermes_calls(text: str) -> list[tuple[str, Any]]:
    """Names and arguments of the calls in a turn's text, by the rules of vLLM's hermes
    parser: ValueError where one cannot be read, as there are none then.
    """
    return [_call(closed or opened) for closed, opened in _CALL.findall(text)]


def _call(text: str) -> tuple[str, Any]:
    value = parse_json(text)
    if not isinstance(value, dict) or not {"name", "arguments"} <= value.keys():
        raise ValueError(f"a call without name and arguments: {text.strip()[:80]}")
    if not isinstance(value["name"], str):
        raise ValueError(f"a name that is no text: {text.strip()[:80]}")
    return value["name"], value["arguments"]


def _read(text: str) -> list[tuple[str, Any]]:
    try:
        return hermes_calls(text)
    except ValueError:
        return []


def is_read_back(message: Message, text: str) -> bool:
    """Whether the calls that are read of `text`, a turn as it is rendered, are those of
    the message, in their order: 1 is no true, and no 1.0 either.
    """
    if not message.calls and OPEN not in text:
        return True
    made = [(call.name, plain(parse(call.arguments))) for call in message.calls]
    return _written(_read(text)) == _written(made)


def _written(calls: list[tuple[str, Any]]) -> str:
    return json.dumps(calls, sort_keys=True)


def require_read_back(message: Message, text: str, number: int) -> None:
    """RowError `unreadable_call` where a server that reads Hermes' tags in `text`, turn
    `number` as it is rendered, finds other calls than the message has.
    """
    if is_read_back(message, text):
        return
    found = [name for name, _ in _read(text)]
    made = [call.name for call in message.calls]
    detail = (
        f"turn {number}: its calls ({_names(made)}), as the template writes them, are read "
        f"back as {_names(found) if found != made else 'calls of other values'}"
    )
    parts = [
        (f"call {place}", [call.name, parse(call.arguments)])
        for place, call in enumerate(message.calls)
    ]
    for where, value in [("its words", [message.content, message.reasoning]), *parts]:
        if tag := tag_in(value):
            detail += f"; {tag} stands in {where}"
            break
    raise RowError("unreadable_call", detail)


def _names(calls: list[str]) -> str:
    return ", ".join(calls)[:80] if calls else "none"
