"""Forms that are lists of messages: OpenAI's, ShareGPT, Toucan, When2Call, Dolci."""

from __future__ import annotations

import re
from typing import Any

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, tools_text
from alia_ctx.data.chat.forms.calls import calls_from_json, pythonic_calls
from alia_ctx.data.chat.forms.hermes import read_tags, with_tagged_calls
from alia_ctx.data.chat.forms.messages import messages_from
from alia_ctx.data.chat.json_text import parse


def read_openai(record: dict[str, Any]) -> Conversation:
    """`messages`, and `tools` (or `functions`) as a list, or as its JSON text; or all in
    Hermes' tags.
    """
    tools = record.get("tools")
    tools = record.get("functions") if tools is None else tools
    messages = messages_from(record["messages"])
    return _conversation(*read_tags(messages, tools_text(tools)))


def _conversation(messages: list[Message], tools: str | None) -> Conversation:
    return Conversation(tuple(messages), tools)


def read_sharegpt(record: dict[str, Any]) -> Conversation:
    """`conversations` of `from` and `value`; `system` and `tools` may stand beside, or be
    in Hermes' tags.
    """
    messages = messages_from(record["conversations"], "from", "value")
    system = record.get("system")
    if system is not None and not isinstance(system, str):
        detail = f"system is {type(system).__name__}, no text"
        raise RowError("content_not_text", detail)
    if system and system.strip():
        messages.insert(0, Message("system", system))
    return _conversation(*read_tags(messages, tools_text(record.get("tools"))))


def read_toucan(record: dict[str, Any]) -> Conversation:
    """Agent-Ark/Toucan-1.5M: columns are JSON text; turns are OpenAI's, or `tool_call` and
    `tool_response` with Python's or JSON text.
    """
    messages = messages_from(record["messages"])
    tools = record.get("tools")
    tools = record.get("available_tools") if tools is None else tools
    # Kimi's own declaration of the tools, as a system prompt; they are in `tools`.
    declared = "<|im_system|>tool_declare"
    if messages and (messages[0].content or "").lstrip().startswith(declared):
        messages.pop(0)
    return Conversation(tuple(messages), tools_text(tools))


def read_when2call(record: dict[str, Any]) -> Conversation:
    """nvidia/When2Call: `tools` as a list of JSON texts, calls inside `<TOOLCALL>`; of its
    preference pairs the chosen answer.
    """
    messages = messages_from(record["messages"])
    chosen = record.get("chosen_response")
    if chosen is not None:
        if isinstance(chosen, dict):
            chosen = chosen.get("content")
        if not isinstance(chosen, str):
            raise RowError("content_not_text", "chosen_response is no text")
        messages.append(Message("assistant", chosen))
    messages = [with_tagged_calls(message, "TOOLCALL") for message in messages]
    return Conversation(tuple(messages), tools_text(record.get("tools")))


def read_dolci(record: dict[str, Any]) -> Conversation:
    """allenai/Dolci-Instruct-SFT-Tool-Use: messages with `functions` (JSON text) and
    `function_calls` (`f(a="x")` a line, or JSON); results are of the role `environment`.
    """
    turns = record["messages"]
    if isinstance(turns, str):
        try:
            turns = parse(turns)
        except ValueError as error:
            raise RowError("unparsable_messages", f"messages: {error}") from error
    tools, messages = tools_text(record.get("tools")), []
    for number, turn in enumerate(turns if isinstance(turns, list) else [turns]):
        [message] = messages_from([turn])
        offered = tools_text(turn.get("functions"))
        if None not in (tools, offered) and parse(offered or "") != parse(tools or ""):
            # All tools are shown at the beginning: earlier turns would answer others.
            detail = f"turn {number} offers other functions than were offered before"
            raise RowError("unparsable_tools", detail)
        tools = offered or tools
        messages.append(_with_function_calls(message, turn.get("function_calls")))
    return Conversation(tuple(messages), tools)


def _with_function_calls(message: Message, calls: Any) -> Message:
    if calls is None or calls == "" or calls == []:
        return message
    if isinstance(calls, list):
        calls = "\n".join(map(str, calls))
    if not isinstance(calls, str):
        detail = f"function_calls are {type(calls).__name__}, no text"
        raise RowError("unparsable_call", detail)
    text = re.sub(r"</?function_calls>", "", calls).strip()
    is_json = text.startswith("{") or re.match(r"\[\s*\{", text)
    found = calls_from_json(text) if is_json else pythonic_calls(text)
    said = message.content if message.content and message.content.strip() else None
    return Message(message.role, said, found)
