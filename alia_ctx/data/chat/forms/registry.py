"""Which form a record has, by its columns, and the reader of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from alia_ctx.data.chat.checks import require_sound, results_in_order
from alia_ctx.data.chat.conversation import Conversation, RowError
from alia_ctx.data.chat.forms import glaive, hermes, lists, toolace, xlam
from alia_ctx.data.chat.forms.beside import TOOLS_COLUMNS, require_all_read
from alia_ctx.data.chat.forms.messages import turns_of
from alia_ctx.data.chat.forms.unread import require_nothing_unread

Reader = Callable[[dict[str, Any]], Conversation]
# Form -> the columns that a record must have, and its reader.
FORMS: dict[str, tuple[tuple[str, ...], Reader]] = {
    "xlam": (("query", "tools", "answers"), xlam.read),
    "glaive": (("system", "chat"), glaive.read),
    "toolace": (("system", "conversations"), toolace.read),
    "toucan": (("messages",), lists.read_toucan),
    "when2call": (("messages", "tools"), lists.read_when2call),
    "dolci": (("messages",), lists.read_dolci),
    "openai": (("messages",), lists.read_openai),
    "sharegpt": (("conversations",), lists.read_sharegpt),
}
# Columns that a form has another place for; the readers of the others read them all.
_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "xlam": TOOLS_COLUMNS[1:],
    "glaive": ("system_prompt", *TOOLS_COLUMNS),
    "toolace": ("system_prompt", *TOOLS_COLUMNS),
}
# What a form's reader makes of a tool before it is shown; of the others nothing.
_AS_SHOWN: dict[str, Callable[[Any], Any]] = {"xlam": xlam.as_json_schema}


def form_of(record: Mapping[str, Any]) -> str:
    """The form of a record by its columns; RowError where no reader knows them."""
    columns = record.keys()
    if {"query", "answers", "tools"} <= columns:
        return "xlam"
    if {"system", "chat"} <= columns:
        return "glaive"
    if "conversations" in columns:
        system = record.get("system")
        listed = toolace.has_tools(record) and not hermes.has_tools(system)
        return "toolace" if listed and not record.get("tools") else "sharegpt"
    messages = record.get("messages")
    if "messages" not in columns:
        names = ", ".join(map(repr, list(columns)[:8])) or "no columns"
        raise RowError("unknown_form", f"has {names}; name the form with `format`")
    turns: list[dict[str, Any]] = []
    with suppress(RowError):  # a text or a list; what is neither is told by its reader
        turns = [turn for turn in turns_of(messages) if isinstance(turn, dict)]
    if any(
        "function_calls" in turn
        or "functions" in turn
        or turn.get("tools")
        or turn.get("available_tools")
        or turn.get("role") == "environment"
        for turn in turns
    ):
        return "dolci"
    tools = record.get("tools")
    texts = isinstance(tools, list) and bool(tools) and isinstance(tools[0], str)
    tagged = any("<TOOLCALL>" in str(turn.get("content")) for turn in turns)
    if isinstance(messages, str) and not tagged:
        return "toucan"
    return "when2call" if texts or tagged or "chosen_response" in columns else "openai"


def read_record(record: Any, form: str = "auto") -> Conversation:
    """The canonical conversation of a record of one form, checked as a whole.

    RowError says why there is none: no object, a column that the form needs is missing,
    or one of the reasons of `require_sound` and of the readers.
    """
    if not isinstance(record, dict):
        raise RowError("no_object", f"the row is {type(record).__name__}, no object")
    name = form_of(record) if form == "auto" else form
    columns, read = FORMS[name]
    lacking = [column for column in columns if column not in record]
    if lacking:
        has = ", ".join(map(repr, list(record)[:8])) or "none"
        detail = f"the form {name} needs {', '.join(lacking)}; the row has {has}"
        raise RowError("missing_column", detail)
    try:
        conversation = read(record)
        elsewhere = _ELSEWHERE.get(name, ())
        as_shown = _AS_SHOWN.get(name, lambda tool: tool)
        require_all_read(record, conversation, elsewhere, as_shown)
        require_nothing_unread(record, conversation)
        require_sound(conversation)
    except RecursionError as error:
        raise RowError("unparsable_messages", "is nested too deeply") from error
    return replace(conversation, messages=results_in_order(conversation.messages))
