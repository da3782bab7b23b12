"""What a template shows of a conversation at all, found out once by rendering marks.

A template that never mentions tools renders a conversation with tools without a word;
what is trained then answers something that the model does not see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, ToolCall
from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.template import ChatTemplate

_SYSTEM, _TOOL, _RESULT, _REASONING = (
    f"mark{word}mark" for word in ("system", "tool", "result", "reasoning")
)
_ASK, _ANSWER = Message("user", "a question"), Message("assistant", "an answer")
_HEAD = Message("system", f"{_SYSTEM}.")
_TOOLS = write(
    [
        {
            "type": "function",
            "function": {
                "name": _TOOL,
                "description": "a function",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    ]
)
# An id of nine letters, as the templates of Mistral want it.
_CALLED = (
    Message("assistant", None, (ToolCall(_TOOL, "{}", "call00001"),)),
    Message("tool", write({"told": _RESULT}), name=_TOOL, call_id="call00001"),
)


@dataclass(frozen=True)
class Shown:
    """Whether a template shows system prompts, tools, results of tools, and what the
    assistant reasoned before it spoke. One that refuses something shows it as far as
    this says: its refusal is told with each conversation.
    """

    system: bool
    tools: bool
    results: bool
    reasoning: bool

    def require(self, conversation: Conversation) -> None:
        """RowError where the conversation has what the template leaves out and the
        assistant's words rest on: its system prompt, tools, or results.
        """
        roles = {message.role for message in conversation.messages}
        for name, shown, there in (
            ("system prompts", self.system, "system" in roles),
            ("tools", self.tools, conversation.tools is not None),
            ("results of tools", self.results, "tool" in roles),
        ):
            if there and not shown:
                raise RowError(
                    "not_shown",
                    f"the template shows no {name}, and this conversation has some; "
                    "take a template that does, as chatml-tools",
                )

    def left_out(self) -> list[str]:
        """What the template does not show, in words."""
        names = {
            "system prompts": self.system,
            "tools": self.tools,
            "results of tools": self.results,
            "reasoning": self.reasoning,
        }
        return [name for name, shown in names.items() if not shown]


def probe(template: ChatTemplate) -> Shown:
    """Render short conversations with a mark in each part, and look for the marks.

    Each part alone and beside the others, as a template may show tools only where there
    is no system prompt.
    """
    plain = Conversation((_ASK, _ANSWER))
    headed = Conversation((_HEAD, _ASK, _ANSWER))
    calling = Conversation((_ASK, *_CALLED, _ANSWER), _TOOLS)
    thinking = replace(_ANSWER, reasoning=_REASONING)

    def shows(mark: str, *conversations: Conversation) -> bool:
        for conversation in conversations:
            try:
                if mark not in template.render(conversation):
                    return False
            except RowError:
                continue
        return True

    both = Conversation((_HEAD, *calling.messages), _TOOLS)
    # Of tools before they are called: the call names one as well.
    offered = (replace(plain, tools=_TOOLS), replace(headed, tools=_TOOLS))
    return Shown(
        system=shows(_SYSTEM, headed, both),
        tools=shows(_TOOL, *offered),
        results=shows(_RESULT, calling, both),
        reasoning=shows(_REASONING, Conversation((_ASK, thinking))),
    )
