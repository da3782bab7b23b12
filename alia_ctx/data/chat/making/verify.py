"""What must hold of a made conversation before it is written, whoever made it."""

from __future__ import annotations

from typing import Any

from alia_ctx.data.chat.checks import require_sound
from alia_ctx.data.chat.conversation import Conversation, RowError, function_of
from alia_ctx.data.chat.json_text import parse, plain
from alia_ctx.data.chat.making.grammar import Call, MadeConversation
from alia_ctx.data.chat.making.values import is_said


def fault_of(made: MadeConversation) -> str | None:
    """Why a made conversation is not what it should be; None where it is.

    Every call validates against its tool's schema, every argument is found in what the
    user said before, a request that keeps a parameter back is not answered by a call,
    and the conversation is sound as any other.
    """
    try:
        require_sound(made.conversation)
    except RowError as error:
        return str(error)
    said = ""
    for number, message in enumerate(made.conversation.messages):
        if message.role == "user":
            said = f"{said}\n{message.content or ''}"
        for call in message.calls:
            arguments = plain(parse(call.arguments))
            if fault := _schema_fault(made.conversation, call.name, arguments):
                return f"turn {number}: {fault}"
            for name, value in arguments.items():
                if not is_said(value, said):
                    return f"turn {number}: the request does not say {name}={value!r}"
    for request in made.requests:
        text = made.conversation.messages[request.turn].content or ""
        if fault := request_fault(request.calls, text):
            return f"turn {request.turn}: {fault}"
        if request.kept_back and made.conversation.messages[request.turn + 1].calls:
            return f"turn {request.turn}: a call answers it, though it lacks something"
    return None


def request_fault(calls: tuple[Call, ...], text: str) -> str | None:
    """What of the calls' arguments a request does not say."""
    for call in calls:
        for name, value in call.arguments.items():
            if not is_said(value, text):
                return f"it does not say {name}={value!r}"
    return None


def _schema_fault(
    conversation: Conversation, name: str, arguments: dict[str, Any]
) -> str | None:
    import jsonschema

    for tool in conversation.tools_for_template() or []:
        function = function_of(tool)
        if function["name"] != name:
            continue
        checker = jsonschema.Draft202012Validator(
            function["parameters"],
            format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
        )
        try:
            error = next(iter(checker.iter_errors(arguments)), None)
        except Exception as broken:  # a pattern that is none, a reference to elsewhere
            return f"{name}: its schema cannot be applied ({broken})"
        return None if error is None else f"{name}: {error.message}"
    return f"{name} is not offered"
