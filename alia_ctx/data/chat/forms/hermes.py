"""Conversations in Hermes' form: tools within `<tools>` of the system prompt, calls within
`<tool_call>` of the assistant's words, results within `<tool_response>`.

So have them NousResearch/hermes-function-calling-v1 and what was rendered with a template
of Qwen's; there is a system prompt that explains the tags, which the template replaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from alia_ctx.data.chat.conversation import Message, RowError, tools_text
from alia_ctx.data.chat.forms.beside import is_same_list, sentences
from alia_ctx.data.chat.forms.calls import calls_from_json, is_same_call, literal
from alia_ctx.data.chat.forms.definitions import is_definition
from alia_ctx.data.chat.json_text import parse, parse_at, write

_TOOLS = re.compile(r"<tools>\s*(?=[\[{])(.*?)\s*</tools>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
# What explains the tags, sentence by sentence: whatever else stands between these is the
# user's own. Wordings of Hermes 2 Pro's card, of the set's parts, and of Qwen's template.
_SCHEMA = r"\s*\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}"
_CALL_TAGS = r"<tool_call>\s*</tool_call>(?: XML)? tags"
_INSTRUCTIONS = sentences(
    r"# Tools (?=You may call one or more functions)",
    r"You are a function calling AI model\.",
    r"You are provided with function signatures within <tools>\s*</tools> XML tags[.:]",
    r"You may call one or more functions to assist with the user query\.",
    r"Don't make assumptions about what values to plug into functions\.",
    r"Here are the available tools:",
    rf"Use the following pydantic model json schema for each tool call you will make:{_SCHEMA}",
    r"For each function call,? return a json object,? with the following pydantic model json "
    rf"schema(?: for each)?:{_SCHEMA}",
    r"For each function call,? return a json object,? with function name and arguments within "
    rf"{_CALL_TAGS}(?: as follows| with the following schema)?[.:]",
    rf"Each function call should be enclosed within {_CALL_TAGS}\.",
    # An example without a value, in either order of its keys.
    r"(?:Example:\s*)?<tool_call>\s*\{(?:tool_call|(?:\s*['\"]?(?:name|arguments)['\"]?\s*:"
    r"\s*<[\w-]+>\s*,?){2}\s*)\}\s*</tool_call>\.?",
)


def has_tools(system: object) -> bool:
    """Whether a system prompt lists tools as Hermes does."""
    return isinstance(system, str) and _TOOLS.search(system) is not None


def read_tags(
    messages: Sequence[Message], tools: str | None
) -> tuple[list[Message], str | None]:
    """The messages with calls and results in the place of their tags, and the tools; as
    they are where no system prompt lists functions. `tools`: what the record has beside.

    RowError where the prompt lists other tools than the record, or tags hold no calls.
    """
    if not messages or messages[0].role != "system":
        return [*messages], tools
    prompt = messages[0].content or ""
    lists, errors = list[str | None](), list[RowError]()
    for text in _TOOLS.findall(prompt):
        try:
            lists.append(_listed(text))
        except RowError as error:  # of an example, where another is the list
            errors.append(error)
    if not (lists or errors) or not _are_meant(lists, prompt, messages):
        return [*messages], tools
    if not lists:
        raise errors[0]
    own = lists[0]
    if any(not is_same_list(other, own) for other in lists[1:]):
        raise RowError("unparsable_tools", "the system prompt has two lists of tools")
    if tools is not None and not is_same_list(tools, own):
        detail = "the tools of the system prompt are others than those of the record"
        raise RowError("unparsable_tools", detail)
    rest = _INSTRUCTIONS.sub("", _TOOLS.sub("\n", prompt))
    head = [Message("system", rest.strip())] if rest.strip() else []
    turns = [turn for message in messages[1:] for turn in _turns(message)]
    return [*head, *turns], own if tools is None else tools


def _are_meant(
    lists: Sequence[str | None], prompt: str, messages: Sequence[Message]
) -> bool:
    """Whether what stands within `<tools>` are functions: prompts write other things in
    tags of this name. One is defined with a schema, or the tags are explained, or used.
    """
    said = [m.content or "" for m in messages if m.role == "assistant"]
    return (
        any(is_definition(tool) for each in lists for tool in parse(each or "[]"))
        or _INSTRUCTIONS.search(prompt) is not None
        or any("<tool_call>" in words for words in said)
    )


def _listed(text: str) -> str | None:
    """Tools of a list, or of objects one after another; JSON, or Python's."""
    try:
        parse(text)
        return tools_text(text)
    except ValueError:
        pass
    found, position = [], 0
    try:
        while position < len(text):
            end = parse_at(text, position)[1]
            found.append(text[position:end])
            position = end + len(text[end:]) - len(text[end:].lstrip(" \t\r\n,"))
        return tools_text(found)
    except ValueError:
        pass
    try:
        return tools_text(write(literal(text)))
    except (RowError, ValueError) as error:
        detail = f"<tools> of the system prompt holds none: {text[:80]!r}"
        raise RowError("unparsable_tools", detail) from error


def _turns(message: Message) -> list[Message]:
    words = message.content or ""
    if message.role == "assistant":
        return [with_tagged_calls(message, "tool_call")]
    results = _RESPONSE.findall(words)
    if message.role not in ("tool", "user") or message.calls or not results:
        return [message]
    if _RESPONSE.sub("", words).strip():
        if message.role == "user":
            return [message]  # somebody speaks of the tag
        detail = f"words beside <tool_response>: {words[:80]!r}"
        raise RowError("unparsable_messages", detail)
    named = message if message.role == "tool" else Message("tool", "")
    return [replace(named, content=result) for result in results]


def with_tagged_calls(message: Message, tag: str) -> Message:
    """An assistant's message with calls in the place of `<tag>...</tag>` in its words.

    RowError where the tag has no end or no call, or words stand behind it.
    """
    words, opening = message.content or "", f"<{tag}>"
    if message.role != "assistant" or opening not in words:
        return message
    block = re.compile(rf"{opening}(.*?)</{tag}>", re.DOTALL)
    blocks = block.findall(words)
    rest = block.sub("", words).strip()
    if not blocks or opening in rest:
        raise RowError("unparsable_call", f"{opening} without an end: {words[-80:]!r}")
    said, _, after = words.partition(opening)
    if rest != said.strip():  # a message's words stand before its calls
        detail = f"words after a call: {after.rpartition('>')[2].strip()[:80]!r}"
        raise RowError("words_after_call", detail)
    calls = tuple(call for text in blocks for call in calls_from_json(text))
    if not calls:
        raise RowError("unparsable_call", f"{opening} holds no call: {words[:80]!r}")
    if message.calls:  # the same, as some sets write them for two kinds of readers
        pairs = zip(message.calls, calls, strict=False)
        same = len(calls) == len(message.calls)
        if not same or not all(is_same_call(*pair) for pair in pairs):
            detail = f"the calls within {opening} are others than its tool_calls"
            raise RowError("unparsable_call", detail)
    return replace(message, content=rest or None, calls=message.calls or calls)
