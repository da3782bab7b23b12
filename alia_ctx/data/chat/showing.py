"""Whether a template shows all of one conversation, each thing as often as it is there.

Two proofs, as either alone is deceived. A rendering in which each text, name and value is
a number of its own must hold all these numbers: the words of one turn are not taken for
those of another. The rendering that is trained must hold the texts themselves: a template
may treat some contents apart.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import Any

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, ToolCall
from alia_ctx.data.chat.json_text import leaves, parse, plain, write
from alia_ctx.data.chat.reasoning import split_reasoning
from alia_ctx.data.chat.template import ChatTemplate


def require_shown(
    conversation: Conversation, template: ChatTemplate, text: str
) -> None:
    """RowError `not_shown` where `text`, the rendering of the conversation, leaves out a
    turn's words, a result, a call, a value of one, or a tool.
    """
    marks = Marks(text)
    try:
        rendered = template.render(marks.marked(conversation))
    except RowError:  # a template that wants certain names: the texts decide alone
        rendered = None
    if rendered is not None:
        for number, (told, where) in enumerate(marks.told):
            if marks.of(number) not in rendered:
                raise _lost(told, where)
    words = Counter[tuple[str, ...]]()
    first: dict[tuple[str, ...], tuple[str, int]] = {}
    for number, message in enumerate(conversation.messages):
        if message.role != "assistant" and (said := (message.content or "").strip()):
            forms = tuple(_squeezed(form) for form in spellings(said))
            words[forms] += 1
            first.setdefault(forms, (said, number))
    squeezed = _squeezed(text)
    for forms, times in words.items():
        if sum(squeezed.count(form) for form in dict.fromkeys(forms)) < times:
            said, number = first[forms]
            raise _lost(said, f"turn {number}")


def unshown_reasoning(
    conversation: Conversation, template: ChatTemplate, text: str
) -> int:
    """Of how many turns `text`, the rendering of the conversation, leaves out what the
    assistant reasoned: of some kinds of turns, or of earlier ones, templates do. Reasoning
    stands beside a turn's words, or in tags among them.
    """
    marks, messages = Marks(text), []
    for number, message in enumerate(conversation.messages):
        if message.role == "assistant":
            message = marks.reasoned(message, f"turn {number}")
        messages.append(message)
    if not marks.told:
        return 0
    try:
        rendered = template.render(replace(conversation, messages=tuple(messages)))
    except RowError:  # a template that wants certain words: the texts decide
        lost = {where for told, where in marks.told if told.strip() not in text}
    else:
        told = enumerate(marks.told)
        lost = {where for n, (_, where) in told if marks.of(n) not in rendered}
    return len(lost)


def require_said(message: Message, shown: str, number: int) -> None:
    """RowError `not_shown` where `shown`, the text of an assistant's turn, does not hold
    its words, or the names, keys and values of its calls, each as often as they are there:
    texts as they are or as JSON writes them, other values by JSON's words or Python's.
    """
    words = (message.content or "").strip()
    if words and not any(form.strip() in shown for form in spellings(words)):
        raise _lost(words, f"turn {number}")
    values = Counter[str | None]()
    texts = Counter[str]()
    for call in message.calls:
        texts[call.name] += 1
        for value in leaves(plain(parse(call.arguments))):
            if isinstance(value, str):
                texts[value] += 1
            else:  # True is 1 to a Counter
                values[json.dumps(value)] += 1
    for text, times in texts.items():
        forms = sorted({form.strip() or form for form in spellings(text)}, key=len)
        pattern = "|".join(map(_whole, filter(None, reversed(forms))))
        if pattern and len(re.findall(pattern, shown)) < times:
            raise _lost(text, _often(times, number))
    for word, times in values.items():
        forms = sorted({str(word), str(json.loads(str(word)))})
        pattern = "|".join(map(re.escape, forms))
        whole = rf"(?<![\w.])(?:{pattern})(?!\w|\.\d)"
        if len(re.findall(whole, shown)) < times:
            raise _lost(str(word), _often(times, number))


def _often(times: int, number: int) -> str:
    return f"turn {number}" + (f", which has it {times} times" if times > 1 else "")


def _whole(form: str) -> str:
    """Matches a text that is no part of a longer word of ASCII (`a` in `name`)."""
    before = r"(?<![A-Za-z0-9])" if re.match("[A-Za-z0-9]", form) else ""
    after = r"(?![A-Za-z0-9])" if re.search(r"[A-Za-z0-9]\Z", form) else ""
    return before + re.escape(form) + after


def _lost(told: str, where: str) -> RowError:
    return RowError("not_shown", f"the template does not show {told[:60]!r} of {where}")


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def escaped(text: str, *, ascii_only: bool = False) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def spellings(text: str) -> tuple[str, ...]:
    """A text as templates write it: as it is, as JSON does (`tojson`, for ASCII as well,
    twice where arguments are a text of JSON themselves), as Python does.
    """
    once = (escaped(text), escaped(text, ascii_only=True))
    twice = (*map(escaped, once), escaped(once[1], ascii_only=True))
    return tuple(dict.fromkeys((text, *once, *twice, repr(text)[1:-1])))


class Marks:
    """Numbers that stand for the contents of a conversation, none of which is in `text`.

    Digits, because no filter of a template changes them; `told` says for each what it
    stands for, and where that is.
    """

    def __init__(self, text: str) -> None:
        self.told: list[tuple[str, str]] = []
        self._prefix = next(p for n in count(731_291) if (p := str(n)) not in text)

    def of(self, number: int) -> str:
        return f"{self._prefix}{number:06d}"

    def marked(self, conversation: Conversation) -> Conversation:
        """The conversation with each of its contents a mark. What a template may ask the
        truth of stays as it is: nulls, false, zero, and texts of nothing.
        """
        tools = conversation.tools
        if tools is not None:
            offered = parse(tools)
            for tool in offered:
                function = tool.get("function", tool)
                function["name"] = self._mark(function["name"], "the tools")
            tools = write(offered)
        messages = []
        for number, message in enumerate(conversation.messages):
            where = f"turn {number}"
            content = message.content
            if content is not None and content.strip():
                content = self._mark(content.strip(), where)
            calls = tuple(
                ToolCall(
                    self._mark(call.name, f"{where}, call {place}"),
                    write(self._value(parse(call.arguments), f"{where}, call {place}")),
                    call.id,
                )
                for place, call in enumerate(message.calls)
            )
            messages.append(replace(message, content=content, calls=calls))
        return Conversation(tuple(messages), tools)

    def reasoned(self, message: Message, where: str) -> Message:
        """A turn with a mark in the place of what was reasoned."""
        reasoning, content = message.reasoning, message.content
        if reasoning is not None and reasoning.strip():
            reasoning = self._mark(reasoning, where)
        thoughts, _ = split_reasoning(content or "")
        if content is not None and thoughts and thoughts in content:
            content = content.replace(thoughts, self._mark(thoughts, where), 1)
        return replace(message, reasoning=reasoning, content=content)

    def _mark(self, told: str, where: str) -> str:
        self.told.append((told, where))
        return self.of(len(self.told) - 1)

    def _value(self, value: Any, where: str) -> Any:
        if isinstance(value, dict):
            return {
                self._mark(key, where) if key else key: self._value(item, where)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._value(item, where) for item in value]
        if not value or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._mark(value, where) if value.strip() else value
        number = int(self._mark(write(value), where))
        return float(number) if isinstance(value, float) else number
