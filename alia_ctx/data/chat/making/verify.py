"""What must hold of a made conversation before it is written, whoever made it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from alia_ctx.data.chat.checks import require_sound
from alia_ctx.data.chat.conversation import Conversation, RowError, function_of
from alia_ctx.data.chat.json_text import parse, plain
from alia_ctx.data.chat.making.catalogue import concepts
from alia_ctx.data.chat.making.drawing import Call
from alia_ctx.data.chat.making.functions import Function
from alia_ctx.data.chat.making.grammar import MadeConversation
from alia_ctx.data.chat.making.parts import Part
from alia_ctx.data.chat.making.values import is_said, known_names, stands_alone
from alia_ctx.data.chat.reading_back import tag_in


def fault_of(made: MadeConversation) -> str | None:
    """Why a made conversation is not what it should be; None where it is.

    Every call validates against its tool's schema, every argument is found in what the
    user said before (a truth also as words that mean it), a request that keeps a
    parameter back is not answered by a call, and the conversation is sound as any other.
    """
    try:
        require_sound(made.conversation)
    except RowError as error:
        return str(error)
    said = ""
    calls = [call for request in made.requests for call in request.calls]
    functions = {call.function.name: call.function for call in calls}
    for number, message in enumerate(made.conversation.messages):
        if message.role == "user":
            said = f"{said}\n{message.content or ''}"
        for call in message.calls:
            arguments = plain(parse(call.arguments))
            if tag := tag_in([call.name, arguments]):
                return (
                    f"turn {number}: {call.name} is called with {tag}, a tag of calls"
                )
            if fault := _schema_fault(made.conversation, call.name, arguments):
                return f"turn {number}: {fault}"
            if fault := _unsaid(functions.get(call.name), arguments, said):
                return f"turn {number}: the request {fault}"
    for request in made.requests:
        text = made.conversation.messages[request.turn].content or ""
        if fault := request_fault(request.calls, text):
            return f"turn {request.turn}: {fault}"
        for name in request.kept_back:
            if request.calls and name in request.calls[0].arguments:
                return f"turn {request.turn}: it says {name}, which it keeps back"
        if request.kept_back and made.conversation.messages[request.turn + 1].calls:
            return f"turn {request.turn}: a call answers it, though it lacks something"
    return None


def request_fault(calls: tuple[Call, ...], text: str) -> str | None:
    """What of the calls' arguments a request does not say."""
    for call in calls:
        if fault := _unsaid(call.function, call.arguments, text):
            return f"it {fault}"
    return None


def _unsaid(
    function: Function | None, arguments: dict[str, Any], text: str
) -> str | None:
    """Of invented functions it is known which words mean that a truth is true; of others,
    which names of objects their schemas have.
    """
    talk = None if function is None else function.talk
    known = None
    if function is not None and talk is None:
        known = known_names(function.parameters)
    for name, value in arguments.items():
        part = None if talk is None else talk.parts.get(name)
        if not _is_said(value, part, text, known):
            return f"does not say {name}={value!r}"
    return None


def _is_said(
    value: Any, part: Part | None, text: str, known: Collection[str] | None = None
) -> bool:
    if part is None:
        return is_said(value, text, known)
    if isinstance(value, bool) and part.concept is not None:
        meant = _meanings(part.concept, value)
        return is_said(value, text) or any(stands_alone(m, text) for m in meant)
    if isinstance(value, dict):
        children = {child.name: child for child in part.children}
        return all(_is_said(v, children.get(k), text) for k, v in value.items())
    if isinstance(value, list):
        item = part.children[0] if part.children else None
        return all(_is_said(one, item, text) for one in value)
    return is_said(value, text)


def _meanings(concept: str, value: bool) -> Iterable[str]:
    """In any language: the words of one mean nothing in another."""
    known = concepts()[concept]
    for language in known.words:
        yield from known.clauses(language, value)


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
