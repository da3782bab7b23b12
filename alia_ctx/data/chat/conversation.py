"""The canonical conversation: OpenAI's messages, with tools and arguments as JSON text.

Tools and arguments are text and not structures because a table of structures (Arrow,
and with it Parquet and `datasets`) gives every object the keys of all others, as nulls:
the schema that a model would see is then not the one that was written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from alia_ctx.data.chat.json_text import (
    items_of,
    joined,
    members_of,
    parse,
    plain,
    write,
)

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


class RowError(Exception):
    """A row that cannot be trained on: `reason`, a word that rows are counted by, and
    `detail`, a sentence about this one.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # as they are, so that it can be pickled
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class ToolCall:
    """A call: `arguments` is the text of a JSON object, as it was written."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. `content` is None where an assistant only calls; `name` and `call_id`
    say which call a tool's result answers; `reasoning` is what came before the words.
    """

    role: Role
    content: str | None
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    call_id: str | None = None
    reasoning: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates take it: arguments as a mapping, nothing that is None."""
        calls = [
            {
                **({"id": call.id} if call.id is not None else {}),
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": plain(parse(call.arguments)),
                },
            }
            for call in self.calls
        ]
        return self._with(calls)

    def to_record(self) -> dict[str, Any]:
        """As OpenAI writes it: arguments as text."""
        calls = [
            {
                **({"id": call.id} if call.id is not None else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in self.calls
        ]
        return self._with(calls)

    def _with(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        fields = {
            "role": self.role,
            "reasoning_content": self.reasoning,
            "content": self.content,
            "tool_calls": calls or None,
            "name": self.name,
            "tool_call_id": self.call_id,
        }
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Conversation:
    """Turns, and the tools that were offered: the text of a JSON array of nested tools
    (see `tools_text`), None without any.
    """

    messages: tuple[Message, ...]
    tools: str | None = None

    def tools_for_template(self) -> list[dict[str, Any]] | None:
        return None if self.tools is None else plain(parse(self.tools))

    def messages_for_template(self) -> list[dict[str, Any]]:
        return [message.for_template() for message in self.messages]

    def to_record(self) -> dict[str, Any]:
        """JSON's types; the reader of the form `openai` makes the same conversation of it."""
        record: dict[str, Any] = {"messages": [m.to_record() for m in self.messages]}
        if self.tools is not None:
            record["tools"] = self.tools
        return record

    def until(self, stop: int) -> Conversation:
        """The first `stop` turns, with all tools."""
        return Conversation(self.messages[:stop], self.tools)


def function_of(tool: Any) -> dict[str, Any]:
    """The object with `name` and `parameters`, of a tool in any of the usual forms:
    nested (`{"type": "function", "function": {...}}`), flat or bare.
    """
    function = tool.get("function") if isinstance(tool, dict) else None
    function = function if isinstance(function, dict) else tool
    if not isinstance(function, dict):
        raise RowError("unparsable_tools", f"a tool is no object: {write(tool)[:80]}")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowError("unparsable_tools", f"a tool has no name: {write(tool)[:80]}")
    return function


def tools_text(value: Any) -> str | None:
    """Tools of a record as the text of an array of nested ones, as OpenAI's and
    transformers' convention has them: from text, an array, or an array of texts; None
    where there are none.

    What was text keeps each tool's function to the character. One form of all, because
    a template shows tools as it gets them, and some read `tool.function.name` alone.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        parsed = _parsed_tools(value)
        if isinstance(parsed, list) and not any(isinstance(x, str) for x in parsed):
            texts = [text for text, _ in items_of(value)]
        elif isinstance(parsed, list):
            return tools_text(parsed)
        else:
            texts = [] if parsed is None else [value.strip()]
    elif isinstance(value, dict):
        texts = [write(value)]
    elif isinstance(value, list):
        texts = [
            tool.strip() if isinstance(tool, str) else write(tool) for tool in value
        ]
    else:
        raise RowError("unparsable_tools", f"tools are {type(value).__name__}")
    return f"[{', '.join(map(_nested, texts))}]" if texts else None


def _nested(text: str) -> str:
    """The text of a tool, nested; its function as it was written, but that a flat tool's
    `"type": "function"` stands outside of it.
    """
    tool = _parsed_tools(text)
    function = function_of(tool)
    members = dict(members_of(text))
    if function is not tool:
        rest = {k: members[k] for k in members if k not in ("type", "function")}
        kind = members.get("type", '"function"')
        nested = {"type": kind, "function": members["function"], **rest}
    else:
        if tool.get("type") == "function":
            del members["type"]
            text = joined(members)
        nested = {"type": '"function"', "function": text}
    return joined(nested)


def _parsed_tools(text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise RowError("unparsable_tools", f"{error} in {text[:80]!r}") from error
