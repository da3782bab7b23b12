"""What a record says beside its turns: its system prompt and its tools, under the names
that sets give these columns.

None of them is passed over, as the assistant would answer what the model does not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from alia_ctx.data.chat.conversation import (
    Conversation,
    Message,
    RowError,
    function_of,
    tools_text,
)
from alia_ctx.data.chat.json_text import parse

SYSTEM_COLUMNS = ("system", "system_prompt")
TOOLS_COLUMNS = ("tools", "functions", "available_tools")


def with_prompt(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages behind the system prompt that the record has beside them; one that
    they begin with already does not come twice.
    """
    prompts = [text for name in SYSTEM_COLUMNS if (text := _prompt(record, name))]
    head = [m.content for m in messages[:1] if m.role == "system"]
    new = [text for text in dict.fromkeys(prompts) if text not in head]
    return [*(Message("system", text) for text in new), *messages]


def _prompt(record: Mapping[str, Any], column: str) -> str | None:
    value = record.get(column)
    if value is not None and not isinstance(value, str):
        detail = f"{column} is {type(value).__name__}, no text"
        raise RowError("content_not_text", detail)
    return value if value and value.strip() else None


def offered_tools(record: Mapping[str, Any]) -> str | None:
    """The tools of a record, or of a turn that offers some, as `tools_text` has them.

    RowError where two columns offer different ones.
    """
    texts = {name: tools_text(record.get(name)) for name in TOOLS_COLUMNS}
    given = {name: text for name, text in texts.items() if text is not None}
    first = next(iter(given), None)
    for name in given:
        if first is not None and parse(given[name]) != parse(given[first]):
            detail = f"{name} offers other tools than {first}"
            raise RowError("unparsable_tools", detail)
    return None if first is None else given[first]


def require_all_read(
    record: Mapping[str, Any], conversation: Conversation, columns: Iterable[str]
) -> None:
    """RowError where one of `columns`, which the record's form has another place for,
    holds a system prompt or tools that the conversation has not.
    """
    head = "".join(m.content or "" for m in conversation.messages[:1])
    for column in columns:
        if column in SYSTEM_COLUMNS:
            lost = (_prompt(record, column) or "").strip() not in head
        else:
            offered = tools_text(record.get(column))
            lost = offered is not None and names(offered) != names(conversation.tools)
        if lost:
            raise RowError(
                "unread_column",
                f"{column!r} says what its form has elsewhere, and not the same; name "
                "another form (`format`), or put it where that form has it",
            )


def names(tools: str | None) -> list[str]:
    """Names of tools, sorted."""
    return sorted(function_of(tool)["name"] for tool in parse(tools or "[]"))
