"""What a record says beside its turns: its system prompt and its tools, under the names
that sets give these columns.

None of them is passed over, as the assistant would answer what the model does not see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, tools_text
from alia_ctx.data.chat.json_text import parse, plain

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


def sentences(*patterns: str) -> re.Pattern[str]:
    """Matches any of these sentences, patterns of `re`, however blanks and letters are
    written, with the blanks behind it.
    """
    either = "|".join(pattern.replace(" ", r"\s+") for pattern in patterns)
    return re.compile(rf"(?:{either})\s*", re.IGNORECASE)


def offered_tools(record: Mapping[str, Any]) -> str | None:
    """The tools of a record, or of a turn that offers some, as `tools_text` has them.

    RowError where two columns offer different ones.
    """
    texts = {name: tools_text(record.get(name)) for name in TOOLS_COLUMNS}
    given = {name: text for name, text in texts.items() if text is not None}
    first = next(iter(given), None)
    for name in given:
        if first is not None and not is_same_list(given[name], given[first]):
            detail = f"{name} offers other tools than {first}"
            raise RowError("unparsable_tools", detail)
    return None if first is None else given[first]


def require_all_read(
    record: Mapping[str, Any],
    conversation: Conversation,
    columns: Iterable[str],
    as_shown: Callable[[Any], Any],
) -> None:
    """RowError where one of `columns`, which the record's form has another place for,
    holds a system prompt or tools that the conversation has not. `as_shown`: what the
    form's reader makes of a tool.
    """
    head = "".join(m.content or "" for m in conversation.messages[:1])
    for column in columns:
        if column in SYSTEM_COLUMNS:
            lost = (_prompt(record, column) or "").strip() not in head
        else:
            tools = [as_shown(tool) for tool in _parsed(tools_text(record.get(column)))]
            lost = bool(tools) and not is_same_list(
                tools_text(tools), conversation.tools
            )
        if lost:
            raise RowError(
                "unread_column",
                f"{column!r} says what its form has elsewhere, and not the same; name "
                "another form (`format`), or put it where that form has it",
            )


def is_same_list(one: str | None, other: str | None) -> bool:
    """Whether two lists, as `tools_text` has them, offer the same: names, descriptions and
    parameters. The order of the tools and of keys says nothing; 1 is no 1.0, and no true.
    """
    return _written(one) == _written(other)


def _written(tools: str | None) -> list[str]:
    return sorted(json.dumps(plain(tool), sort_keys=True) for tool in _parsed(tools))


def _parsed(tools: str | None) -> list[Any]:
    return [] if tools is None else list(parse(tools))
