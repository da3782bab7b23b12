"""What makes a conversation unfit for training, whatever form it came in."""

from __future__ import annotations

from collections import Counter
from typing import Any

from alia_ctx.data.chat.conversation import (
    Conversation,
    Message,
    RowError,
    ToolCall,
    function_of,
)
from alia_ctx.data.chat.json_text import leaves, parse
from alia_ctx.data.chat.written_calls import written_call

# Who may speak after whom; "calls" is an assistant that waits for results.
_FOLLOWERS = {
    "start": {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "calls": {"tool"},
    "tool": {"tool", "assistant"},
    "assistant": {"user"},
}


def require_sound(conversation: Conversation) -> None:
    """RowError for the first of these: nothing said, an order of turns that no dialogue
    has, a call of a tool that was not offered or without an argument that it needs, a
    call without a result where a turn follows, a result of no call, an end that is not
    the assistant's, characters that are none.
    """
    functions = _functions(conversation.tools)
    _require_order(conversation.messages)
    for number, message in enumerate(conversation.messages):
        _require_words(number, message)
        for call in message.calls:
            _require_call(number, call, functions)
    _require_calls_apart(conversation, functions)
    _require_results(conversation.messages)
    _require_characters(conversation)


def _functions(tools: str | None) -> dict[str, list[dict[str, Any]]]:
    """Tools by name; two may share one."""
    functions: dict[str, list[dict[str, Any]]] = {}
    for tool in parse(tools) if tools is not None else []:
        function = function_of(tool)
        _require_schema(function)
        functions.setdefault(function["name"], []).append(function)
    return functions


def _require_schema(function: dict[str, Any]) -> None:
    """Parameters are an object, and what they require names: a model would be shown what
    says nothing, and a call could lack anything.
    """
    # ToolACE calls some functions' parameters `arguments`.
    schema = function.get("parameters") or function.get("arguments")
    if schema and not isinstance(schema, dict):
        detail = (
            f"parameters of {function['name']!r} are {type(schema).__name__}, no object"
        )
        raise RowError("unparsable_tools", detail)
    required = (schema or {}).get("required")
    # Drafts 3 and 4 let a schema say of itself that it is required.
    if required is not None and not isinstance(required, list | bool):
        detail = (
            f"{function['name']!r} requires {str(required)[:60]!r}, which is no list"
        )
        raise RowError("unparsable_tools", detail)
    for name in required if isinstance(required, list) else []:
        if not isinstance(name, str):
            detail = f"{function['name']!r} requires {str(name)[:60]}, which is no name"
            raise RowError("unparsable_tools", detail)


def _require_calls_apart(
    conversation: Conversation, functions: dict[str, list[dict[str, Any]]]
) -> None:
    """Where tools are offered calls are calls: as words nothing compares them with these."""
    if conversation.tools is None:
        return
    for number, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        if told := written_call(message.content or "", functions):
            raise RowError(
                "unparsable_call",
                f"turn {number}: a call stands among its words ({told}); give it as "
                "tool_calls",
            )


def _require_order(messages: tuple[Message, ...]) -> None:
    if not messages:
        raise RowError("empty", "the conversation has no turn")
    before = "start"
    for number, message in enumerate(messages):
        if message.role not in _FOLLOWERS[before]:
            if before == "calls":
                detail = (
                    f"turn {number} is {message.role} although calls wait for results"
                )
                raise RowError("call_without_result", detail)
            if message.role == "tool":
                raise RowError("result_without_call", f"turn {number} answers no call")
            who = "the beginning" if before == "start" else before
            raise RowError(
                "wrong_role_order", f"turn {number} is {message.role} after {who}"
            )
        before = "calls" if message.calls else message.role
    if messages[-1].role != "assistant":
        detail = f"the last turn is {messages[-1].role}; nothing answers it"
        raise RowError("no_answer", detail)


def _require_words(number: int, message: Message) -> None:
    if message.calls and message.role != "assistant":
        raise RowError("wrong_role_order", f"turn {number}: {message.role} calls tools")
    said = message.content is not None and message.content.strip()
    if message.role in ("user", "assistant") and not said and not message.calls:
        raise RowError("empty", f"turn {number}: {message.role} says nothing")


def _require_call(
    number: int, call: ToolCall, functions: dict[str, list[dict[str, Any]]]
) -> None:
    where = f"turn {number}: {call.name!r}"
    try:
        arguments = parse(call.arguments)
    except ValueError as error:
        raise RowError("unparsable_call", f"{where}: arguments: {error}") from error
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        raise RowError("unparsable_call", f"{where}: arguments are {kind}, no object")
    if call.name not in functions:
        known = ", ".join(functions) or "none"
        raise RowError("unknown_function", f"{where} is not offered ({known[:120]})")
    lacking = [_lacking(function, arguments) for function in functions[call.name]]
    if all(lacking):
        raise RowError("missing_argument", f"{where} lacks {', '.join(lacking[0])}")


def _lacking(function: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    """Required parameters that a call does not give."""
    schema = function.get("parameters") or function.get("arguments") or {}
    required = schema.get("required")
    names = required if isinstance(required, list) else []
    return [name for name in names if name not in arguments]


def _require_results(messages: tuple[Message, ...]) -> None:
    """Where calls have ids each is answered once; without ids one result may answer all."""
    for number, message in enumerate(messages):
        if not message.calls or number + 1 == len(messages):
            continue
        results = []
        for after in messages[number + 1 :]:
            if after.role != "tool":
                break
            results.append(after)
        where = f"turn {number}"
        if len(results) > len(message.calls):
            detail = f"{where}: {len(results)} results of {len(message.calls)} calls"
            raise RowError("result_without_call", detail)
        asked = [call.id for call in message.calls if call.id is not None]
        if asked and len(results) != len(message.calls):
            detail = f"{where}: {len(results)} results of {len(message.calls)} calls"
            raise RowError("call_without_result", detail)
        if 1 < len(results) < len(message.calls):
            detail = (
                f"{where}: {len(results)} results of {len(message.calls)} calls, and "
                "nothing says which have none"
            )
            raise RowError("call_without_result", detail)
        _require_names(where, message.calls, results)
        given = [result.call_id for result in results if result.call_id is not None]
        if len(set(asked)) != len(asked):
            raise RowError("unparsable_call", f"{where}: two calls have one id")
        if given and set(given) - set(asked):
            lost = sorted(set(given) - set(asked))[0]
            raise RowError(
                "result_without_call", f"{where}: no call has the id {lost!r}"
            )
        if given and len(given) != len(results):
            detail = f"{where}: some of its results have no id, and some have"
            raise RowError("result_without_call", detail)
        if len(set(given)) != len(given):
            raise RowError("result_without_call", f"{where}: two results have one id")
        if given and (missing := [one for one in asked if one not in given]):
            detail = f"{where}: the call {missing[0]!r} has no result"
            raise RowError("call_without_result", detail)


def _require_names(
    where: str, calls: tuple[ToolCall, ...], results: list[Message]
) -> None:
    """Results that no id gives to a call are of the functions that they name."""
    named = Counter(r.name for r in results if r.name is not None and not r.call_id)
    called = Counter(call.name for call in calls)
    if wrong := [name for name in named if name not in called]:
        detail = f"{where}: a result is of {wrong[0]!r}, which was not called"
        raise RowError("result_without_call", detail)
    all_named = named.total() == len(results)
    alone = len(results) == 1 and len(called) == 1  # one result of all calls
    if all_named and named and named != called and not alone:
        lost = next(iter((called - named) or called))
        detail = f"{where}: the results name other calls; {lost!r} has none of its own"
        raise RowError("call_without_result", detail)


def results_in_order(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns with the results of each turn's calls in the order of these, by their ids,
    or by the functions that they name: most templates show neither, and the order says
    which result is of which call.
    """
    ordered = [*messages]
    for number, message in enumerate(messages):
        place = slice(number + 1, number + 1 + len(message.calls))
        results = [result for result in messages[place] if result.role == "tool"]
        for calls, answered in (
            ([c.id for c in message.calls], [r.call_id for r in results]),
            ([c.name for c in message.calls], [r.name for r in results]),
        ):
            if None not in answered and Counter(calls) == Counter(answered):
                left = [*zip(answered, results, strict=True)]
                for offset, call in enumerate(calls, number + 1):
                    at = next(i for i, (whose, _) in enumerate(left) if whose == call)
                    ordered[offset] = left.pop(at)[1]
                break
    return tuple(ordered)


def _require_characters(conversation: Conversation) -> None:
    # A lone surrogate may be written in JSON, and is no character in UTF-8.
    shown = [conversation.messages_for_template(), conversation.tools_for_template()]
    for value in leaves(shown):
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            detail = f"{error.object[error.start : error.end]!a} is no character"
            raise RowError("invalid_unicode", detail) from error
