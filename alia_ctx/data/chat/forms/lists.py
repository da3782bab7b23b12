"""Forms that are lists of messages: OpenAI's, ShareGPT, Toucan, When2Call, Dolci.

They differ in the names of their columns and in how their turns call. What stands in the
words of any of them is read alike (`_conversation`): Hermes' tags, and Kimi's declaration.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, tools_text
from alia_ctx.data.chat.forms.beside import is_same_list, offered_tools, with_prompt
from alia_ctx.data.chat.forms.calls import calls_from_json, pythonic_calls
from alia_ctx.data.chat.forms.hermes import read_tags, with_tagged_calls
from alia_ctx.data.chat.forms.messages import messages_from, turns_of
from alia_ctx.data.chat.json_text import parse


def read_openai(record: dict[str, Any]) -> Conversation:
    """`messages`, and `tools` (or `functions`) as a list, or as its JSON text."""
    return _conversation(record, messages_from(record["messages"]))


def _conversation(
    record: dict[str, Any], messages: list[Message], tools: str | None = None
) -> Conversation:
    """`tools`: what the turns offer; None is what the record has beside them."""
    tools = tools or offered_tools(record)
    declared = _DECLARED.match(messages[0].content or "") if messages else None
    if declared is not None and messages[0].role == "system":
        tools = _with_declared(declared[1], tools)
        rest = (messages[0].content or "")[declared.end() :].strip()
        messages = [*([Message("system", rest)] if rest else []), *messages[1:]]
    messages, tools = read_tags(with_prompt(record, messages), tools)
    return Conversation(tuple(messages), tools)


def read_sharegpt(record: dict[str, Any]) -> Conversation:
    """`conversations` of `from` and `value`; `system` and `tools` may stand beside."""
    messages = messages_from(record["conversations"], "from", "value")
    return _conversation(record, messages)


def read_toucan(record: dict[str, Any]) -> Conversation:
    """Agent-Ark/Toucan-1.5M: columns are JSON text; turns are OpenAI's, or `tool_call` and
    `tool_response` with Python's or JSON text.
    """
    return _conversation(record, messages_from(record["messages"]))


# Kimi's own declaration of the tools, which stands as a system prompt.
_DECLARED = re.compile(
    r"\s*<\|im_system\|>tool_declare(?:<\|im_middle\|>)?(.*?)(?:<\|im_end\|>|\Z)",
    re.DOTALL,
)


def _with_declared(text: str, tools: str | None) -> str | None:
    """The tools of a record, or those that its declaration lists in their place."""
    try:
        parse(text)
    except ValueError as error:
        if tools is None:
            detail = (
                f"the declaration of tools is no JSON, and no list is beside: {error}"
            )
            raise RowError("unparsable_tools", detail) from error
        return tools  # a declaration in words, of the list beside
    listed = tools_text(text)
    if None not in (listed, tools) and not is_same_list(listed, tools):
        detail = (
            "the declaration lists other tools than the record has beside its turns"
        )
        raise RowError("unparsable_tools", detail)
    return listed if tools is None else tools


def read_when2call(record: dict[str, Any]) -> Conversation:
    """nvidia/When2Call: `tools` as a list of JSON texts, calls inside `<TOOLCALL>`; of its
    preference pairs the chosen answer.
    """
    messages = messages_from(record["messages"])
    chosen = record.get("chosen_response")
    if chosen is not None:
        if isinstance(chosen, str):
            chosen = {"content": chosen}
        if not isinstance(chosen, dict):
            raise RowError("content_not_text", "chosen_response is no text")
        messages += messages_from([{"role": "assistant", **chosen}])
    messages = [with_tagged_calls(message, "TOOLCALL") for message in messages]
    return _conversation(record, messages)


def read_dolci(record: dict[str, Any]) -> Conversation:
    """allenai/Dolci-Instruct-SFT-Tool-Use: messages with `functions` (JSON text) and
    `function_calls` (`f(a="x")` a line, or JSON); results are of the role `environment`.
    """
    tools, messages = offered_tools(record), []
    for number, turn in enumerate(turns_of(record["messages"])):
        [message] = messages_from([turn], offers=True)
        offered = offered_tools(turn)
        if None not in (tools, offered) and not is_same_list(offered, tools):
            # All tools are shown at the beginning: earlier turns would answer others.
            detail = f"turn {number} offers other functions than were offered before"
            raise RowError("unparsable_tools", detail)
        tools = offered or tools
        messages.append(_with_function_calls(message, turn.get("function_calls")))
    return _conversation(record, messages, tools)


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
    if message.calls:
        detail = "a turn has both tool_calls and function_calls"
        raise RowError("unparsable_call", detail)
    said = message.content if message.content and message.content.strip() else None
    return replace(message, content=said, calls=found)
