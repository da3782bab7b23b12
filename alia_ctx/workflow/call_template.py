"""The chat template that questions go through: one that shows tools, or none is asked."""

from __future__ import annotations

from dataclasses import dataclass

from alia_ctx.data.chat import Conversation, Message, RowError, ToolCall
from alia_ctx.data.chat.probing import Shown, probe, turn_as_written
from alia_ctx.data.chat.stops import stop_tokens
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.chat.turns import special_pattern
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.evaluation.function_calling import Answer, calls_of

_SHIPPED = "chatml-tools"


@dataclass(frozen=True)
class ShowingTemplate:
    """A template that shows tools, how it is called, and what a reader of the answers has to
    know of it.
    """

    name: str
    template: ChatTemplate
    shown: Shown
    stops: tuple[str, ...] = ()  # tokens that end turns of it
    notes: tuple[str, ...] = ()

    def require(self, asked: Conversation) -> None:
        """RowError where it leaves out results that the conversation goes on from."""
        if not self.shown.results and any(m.role == "tool" for m in asked.messages):
            remedy = f"take one that does, as {_SHIPPED}"
            raise RowError("not_shown", f"the template shows no results; {remedy}")


_CALL = ToolCall("get_value", '{"n": 1}', "call00001")  # Mistral's want nine letters
_ASKED = Conversation(
    (Message("user", "a question"),),
    '[{"type": "function", "function": {"name": "get_value", "description": "a function", '
    '"parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}}]',
)


def _unread_call(template: ChatTemplate, stops: tuple[str, ...]) -> str | None:
    """How a template writes a call, where that is not read as this call; None where it is,
    or it shows none.
    """
    turn = Message("assistant", None, (_CALL,))
    written = turn_as_written(template, _ASKED, turn) or ""
    written = written.removesuffix(template.closing)
    end = next((s for s in stops if written.rstrip().endswith(s)), "")
    written = written.rstrip().removesuffix(end) if end else written
    if _CALL.name not in written:
        return None
    is_read = calls_of(Answer(written)).calls == ((_CALL.name, {"n": 1}),)
    return None if is_read else written


def template_with_tools(given: str | None, tokenizer: HubTokenizer) -> ShowingTemplate:
    """`given`, as in `ChatTemplate`. None is the tokenizer's own, and the shipped one where
    it has none or its own leaves tools out without a word: a model that is not shown the
    tools calls none of them, which would look like its answer.

    ConfigError where `given` leaves them out.
    """
    pattern = special_pattern(dict(tokenizer.special))

    def probed(name: str) -> tuple[ChatTemplate, Shown]:
        template = ChatTemplate(name, tokenizer)
        return template, probe(template, pattern)

    own = "tokenizer" if tokenizer.auto.chat_template else _SHIPPED
    name, notes = given or own, []
    template, shown = probed(name)
    if not shown.tools and given is None:
        notes.append(
            f"its own chat template shows no tools, and {_SHIPPED} stands in for it"
        )
        name = _SHIPPED
        template, shown = probed(name)
    if not shown.tools:
        rule = "shows the model no tools"
        remedy = f"leave it out, or name a template that does, as {_SHIPPED}"
        raise ConfigError("", [Problem("--template", given, rule, remedy)])
    if not shown.system:
        notes.append("its chat template leaves system prompts out")
    stops = stop_tokens(template, pattern)
    if unread := _unread_call(template, stops):
        notes.append(
            f"its chat template writes a call as {unread!r}: answers in that form are "
            "not read, and count as answers without calls"
        )
    return ShowingTemplate(name, template, shown, stops, tuple(notes))
