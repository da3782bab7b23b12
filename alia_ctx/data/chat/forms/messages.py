"""Turns as objects -> `Message`s, under all names that data sets give roles and fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alia_ctx.data.chat.conversation import Message, Role, RowError, ToolCall
from alia_ctx.data.chat.forms.beside import TOOLS_COLUMNS
from alia_ctx.data.chat.forms.calls import (
    call_from,
    calls_from_json,
    identity_of,
    is_same_call,
)
from alia_ctx.data.chat.json_text import parse

# What the sets call them -> who speaks. `calls` and `tool_call` are turns of the
# assistant that consist of calls; Dolci has `environment`, ShareGPT `human`, `gpt`,
# `function_call` and `observation`, Toucan `tool_call` and `tool_response`.
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "environment": "tool",
    "observation": "tool",
}
# Of sets for other trainers, which train turns by choice.
_TRAINED_KEYS = ("train", "loss", "trainable", "training")
_CALL_ROLES = ("function_call", "tool_call", "tool_calls")
# What a turn calls that it reasoned before it spoke; the last of them are structures.
_REASONING_KEYS = (
    *("reasoning_content", "reasoning", "thinking", "reasoning_text"),
    *("thinking_content", "thought", "thoughts", "chain_of_thought"),
    *("reasoning_details", "thinking_blocks"),
)


def messages_from(
    turns: Any, role: str = "role", content: str = "content", *, offers: bool = False
) -> list[Message]:
    """Messages of a list of objects, or of its JSON text; keys `role` and `content`.

    An assistant's turns that only call become one with its turn before them: some sets
    (Toucan, ShareGPT) have a turn for each call. `offers`: whoever calls reads the tools
    that turns may offer, and their `function_calls`; RowError where nobody does.
    """
    messages: list[Message] = []
    asked: set[str | None] = set()
    for number, turn in enumerate(turns_of(turns)):
        if not isinstance(turn, dict):
            detail = f"turn {number} is {type(turn).__name__}, no object"
            raise RowError("unparsable_messages", detail)
        if not offers and any(turn.get(column) for column in TOOLS_COLUMNS):
            detail = (
                f"turn {number} offers tools, which only the form dolci reads there"
            )
            raise RowError("unparsable_tools", detail)
        if not offers and turn.get("function_calls"):
            detail = (
                f"turn {number} has function_calls, which only the form dolci reads"
            )
            raise RowError("unparsable_call", detail)
        message = _message(number, turn, role, content)
        asked.update(call.id for call in message.calls)
        if message.role == "tool" and message.call_id is None:
            # Some call the call's id plainly `id`, others the turn's own.
            own = identity_of(turn, "id")
            message = replace(message, call_id=own if own in asked else None)
        only_calls = message.calls and not message.content and not message.reasoning
        if messages and only_calls and messages[-1].role == "assistant":
            words = messages.pop()
            message = replace(words, calls=(*words.calls, *message.calls))
        messages.append(message)
    return messages


def turns_of(value: Any) -> list[Any]:
    """The turns of a list, or of its JSON text; RowError where it is none."""
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError as error:
            raise RowError("unparsable_messages", f"messages: {error}") from error
    if not isinstance(value, list):
        detail = f"the turns are {type(value).__name__}, no list"
        raise RowError("unparsable_messages", detail)
    return value


def _message(number: int, turn: dict[str, Any], role: str, content: str) -> Message:
    who, words = turn.get(role), turn.get(content)
    if words is not None and not isinstance(words, str):
        detail = f"turn {number}: content is {type(words).__name__}, no text"
        raise RowError("content_not_text", detail)
    if turn.get("weight") not in (None, 1):
        # OpenAI's fine-tuning format: 0 is a turn that is not to be trained.
        detail = f"turn {number} has weight {turn['weight']!r}; only 1 is read"
        raise RowError("weighted_turn", detail)
    _require_trained_alike(number, turn, who)
    if who in _CALL_ROLES:
        return Message("assistant", None, calls_from_json(words or ""))
    if not isinstance(who, str) or who not in _ROLES:
        raise RowError("unknown_role", f"turn {number} is of {who!r}")
    calls = _calls(number, turn)
    if calls and _ROLES[who] != "assistant":
        raise RowError("wrong_role_order", f"turn {number}: {who} calls tools")
    if _ROLES[who] != "tool":
        return Message(
            _ROLES[who],
            None if calls and not words else words if words is not None else "",
            calls,
            reasoning=_reasoning(number, turn),
        )
    return Message(
        "tool",
        words if words is not None else "",
        name=_text(turn.get("name")),
        call_id=identity_of(turn, "tool_call_id", "call_id"),
    )


def _reasoning(number: int, turn: dict[str, Any]) -> str | None:
    if not isinstance(turn.get("reasoning_content"), str | None):
        detail = f"turn {number}: reasoning_content is no text"
        raise RowError("content_not_text", detail)
    values = {key: turn[key] for key in _REASONING_KEYS if turn.get(key)}
    for value in values.values():
        if isinstance(value, str) and value.strip():
            return value
    for key, value in values.items():
        if isinstance(value, list | dict):
            detail = f"turn {number}: {key} is no text, and no other key has its text"
            raise RowError("content_not_text", detail)
    return None


def _require_trained_alike(number: int, turn: dict[str, Any], who: Any) -> None:
    """RowError where a turn says that it is to be trained otherwise than all are: each of
    the assistant's is, and no other.
    """
    speaks = who in _CALL_ROLES or _ROLES.get(str(who)) == "assistant"
    for key in _TRAINED_KEYS:
        value = turn.get(key)
        if value is not None and (value not in (0, 1) or bool(value) != speaks):
            detail = f"turn {number} has {key!r}: {value!r}; it is trained as all are"
            raise RowError("weighted_turn", detail)
    if speaks and turn.get("mask") is not None:  # of which some say 1 and mean trained
        detail = f"turn {number} has a mask; only whole conversations are trained"
        raise RowError("weighted_turn", detail)


def _calls(number: int, turn: dict[str, Any]) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls")
    if isinstance(calls, str):
        return calls_from_json(calls) if calls.strip() else ()
    if calls is not None and not isinstance(calls, list):
        detail = f"turn {number}: tool_calls are {type(calls).__name__}, no list"
        raise RowError("unparsable_call", detail)
    found = [call_from(call) for call in calls or []]
    if turn.get("function_call"):
        call = call_from(turn["function_call"])
        if found and not any(is_same_call(call, one) for one in found):
            detail = f"turn {number}: function_call is none of its tool_calls"
            raise RowError("unparsable_call", detail)
        found = found or [call]  # the same call, as two interfaces have it
    return tuple(found)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
