"""The tokens with which a template ends the assistant's turns, as training has them.

Who serves or measures a model has to stop at each of them: a model that has learned to
end its calls with a token of their own runs on behind it where only another is known.
"""

from __future__ import annotations

import re

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, ToolCall
from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.chat.turns import end_of_turn

_ASK, _HEAD = Message("user", "a question"), Message("system", "a prompt")
_SAID, _VALUE = "an answer", "qvalueq"
_TOOLS = write(
    [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "a function",
                "parameters": {
                    "type": "object",
                    "properties": {"x": {"type": "string", "description": "a text"}},
                },
            },
        }
    ]
)
# Ids of nine letters, as the templates of Mistral want them.
_CALLS = tuple(ToolCall("f", write({"x": _VALUE}), f"call0000{n}") for n in range(2))
_RESULT = Message("tool", write({"y": 1}), name="f", call_id="call00000")
_BLANK = re.compile(r"\s*")


def stop_tokens(template: ChatTemplate, special: re.Pattern[str]) -> tuple[str, ...]:
    """The special tokens that end turns of words and of calls, in this order; none where
    no such token does.

    special: matches each special token of the tokenizer.

    Each is found as that of a trained turn is, in short conversations: with and without
    tools, a system prompt and results, of one call, of two, and behind words. Where
    training would refuse a turn, a token behind its words ends it. One of calls alone that
    stands between two calls as well ends none: it would cut the second off.
    """
    of_words: dict[str, None] = {}
    of_calls: dict[str, None] = {}
    within: set[str] = set()
    for conversation in _conversations():
        try:
            text = template.render(conversation)
        except RowError:
            continue
        turn = conversation.messages[-1]
        mark = _VALUE if turn.calls else _SAID
        start = text.rfind(mark)
        if start < 0:
            continue
        behind = start + len(mark)
        tokens = [match.span() for match in special.finditer(text, behind)]
        number = len(conversation.messages) - 1
        found = of_calls if turn.calls else of_words
        try:
            end = end_of_turn(text, start, tokens, turn, number, special, template)
            found |= {text[a:b]: None for a, b in tokens if b == end}
        except RowError:
            blank = _BLANK.match(text, behind)
            token = special.match(text, blank.end() if blank else behind)
            if token is not None and not turn.calls:
                found[token[0]] = None
        if len(turn.calls) > 1:
            between = text[text.rfind(_VALUE, 0, start) : start]
            within |= {match[0] for match in special.finditer(between)}
    return (*of_words, *(t for t in of_calls if t not in of_words and t not in within))


def _conversations() -> list[Conversation]:
    """Short ones, each up to a turn whose end is looked for; those of words first."""
    words = Message("assistant", _SAID)
    called = Message("assistant", None, _CALLS[:1])
    turns = (
        words,
        called,
        Message("assistant", _SAID, _CALLS[:1]),
        Message("assistant", None, _CALLS),
    )
    talks = []
    for turn in turns:
        for head in ((), (_HEAD,)):
            if not turn.calls:
                talks.append(Conversation((*head, _ASK, turn)))
            talks.append(Conversation((*head, _ASK, turn), _TOOLS))
            told = (*head, _ASK, called, _RESULT, turn)
            talks.append(Conversation(told, _TOOLS))
    return talks
