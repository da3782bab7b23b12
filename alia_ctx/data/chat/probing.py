"""What a template shows of a conversation at all, found out once by rendering marks.

A template that never mentions tools renders a conversation with tools without a word;
what is trained then answers something that the model does not see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, ToolCall
from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.reading_back import is_read_back
from alia_ctx.data.chat.template import ChatTemplate

_SYSTEM, _TOOL, _RESULT, _REASONING = (
    f"mark{word}mark" for word in ("system", "tool", "result", "reasoning")
)
_SAID = "an answer"
_ASK, _ANSWER = Message("user", "a question"), Message("assistant", _SAID)
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
    beside_calls: str | None = None  # what it writes between calls or behind them
    hermes: bool = False  # whether calls are read back by Hermes' tags

    def require(self, conversation: Conversation) -> None:
        """RowError where the conversation has what the template leaves out and the
        assistant's words rest on: its system prompt, tools, or results; or calls, and
        the template writes beside calls what nobody said.
        """
        if self.beside_calls and any(m.calls for m in conversation.messages):
            raise RowError("text_after_answer", self.beside_calls)
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


def probe(template: ChatTemplate, special: re.Pattern[str]) -> Shown:
    """Render short conversations with a mark in each part, and look for the marks.

    special: matches each special token of the tokenizer.

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
        beside_calls=_beside_calls(template, special),
        hermes=_writes_hermes(template),
    )


def turn_as_written(
    template: ChatTemplate, asked: Conversation, turn: Message
) -> str | None:
    """What a template writes of an assistant's turn behind its prompt, with what closes it;
    None where it refuses the turn, or writes the prompt otherwise before it.
    """
    try:
        prompt = template.render(asked, prompt=True)
        text = template.render(replace(asked, messages=(*asked.messages, turn)))
    except RowError:
        return None
    return text[len(prompt) :] if text.startswith(prompt) else None


def _writes_hermes(template: ChatTemplate) -> bool:
    """Whether two calls, or one where a template refuses two, are read as Hermes writes
    them: another form is none of its rules' to judge.
    """
    asked = Conversation((_ASK,), _TOOLS)
    made = (
        ToolCall(_TOOL, '{"x": [1, {"y": "z"}], "t": true}', "call00001"),
        ToolCall(_TOOL, "{}", "call00002"),
    )
    for calls in (made, made[:1]):
        turn = Message("assistant", None, calls)
        written = turn_as_written(template, asked, turn)
        if written is not None and is_read_back(turn, written):
            return True
    return False


_WORD = re.compile(r"[^\W\d_]+")
# Tags, and keys that follow the arguments: the form of calls, and nobody's words.
_FORM = re.compile(r"""<[^<>]*>|\[/?[A-Z_]+\]|"[^"\n]*"|'[^'\n]*'""")


def _beside_calls(template: ChatTemplate, special: re.Pattern[str]) -> str | None:
    """What is wrong with what a template writes between calls, or between the last one
    and its stop token: words that are not of the form in which it writes each call, words
    of the turn itself, or blanks that do not follow each call.
    """
    one = _Called.of(template, special, calls=1)
    if one is None:
        return None
    two = _Called.of(template, special, calls=2)
    both = _Called.of(template, special, calls=1, words=True)
    about = "; that is nobody's words: take it out of the template"
    if _WORD.search(_FORM.sub("", special.sub("", one.behind))):
        return f"the template writes {one.behind[-40:]!r} behind calls{about}"
    between = two.between if two is not None else None
    blank = one.behind != one.behind.rstrip()
    if blank and not (between or "").startswith(one.behind):
        return f"the template writes {one.behind[-40:]!r} behind calls{about}"
    form = f"{one.behind} {one.before}"
    if between is not None and not _within(between, form):
        return f"the template writes {between[:80]!r} between calls{about}"
    if both is not None and _SAID in both.behind:
        return "the template writes a turn's words behind its calls; put them before"
    before = both.before.rpartition(_SAID)[2] if both is not None else ""
    if not _within(before, form):
        return f"the template writes {before[:80]!r} before calls{about}"
    return None


def _within(text: str, form: str) -> bool:
    """Whether the words of a text are some of those of `form`, in their order."""
    rest = iter(_WORD.findall(form))
    return all(word in rest for word in _WORD.findall(text))


@dataclass(frozen=True)
class _Called:
    """A turn of calls as a template writes it: what stands before the first, between the
    first two, and between the last one and the stop token.
    """

    before: str
    between: str | None
    behind: str

    @classmethod
    def of(
        cls,
        template: ChatTemplate,
        special: re.Pattern[str],
        *,
        calls: int,
        words: bool = False,
    ) -> _Called | None:
        """None where the template refuses such turns, or does not show all of them."""
        marks = [tuple(f"q{part}{n}q" for part in "nkv") for n in range(calls)]
        ids = [f"call0000{n}" for n in range(calls)]
        made = tuple(
            ToolCall(name, write({key: value}), identity)
            for (name, key, value), identity in zip(marks, ids, strict=True)
        )
        turn = Message("assistant", _SAID if words else None, made)
        text = turn_as_written(template, Conversation((_ASK,), _TOOLS), turn)
        if text is None:
            return None
        spans = []
        for parts, identity in zip(marks, ids, strict=True):
            if not all(part in text for part in parts):
                return None
            shown = (*parts, identity) if identity in text else parts
            begin = min(text.index(part) for part in shown)
            spans.append((begin, max(text.rindex(p) + len(p) for p in shown)))
        closing, last = template.closing, spans[-1][1]
        if closing and text.endswith(closing):
            stop = len(text) - len(closing)
        else:
            tokens = [match.start() for match in special.finditer(text, last)]
            stop = tokens[-1] if tokens else len(text)
        between = text[spans[0][1] : spans[1][0]] if calls > 1 else None
        return cls(text[: spans[0][0]], between, text[last:stop])
