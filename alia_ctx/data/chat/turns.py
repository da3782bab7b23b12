"""Where in the rendered text the assistant's turns lie.

A turn begins where the rendering of all before it ends when the assistant is asked to
speak, and ends with its stop token. Both renderings must be beginnings of the whole
text; where a later turn changes an earlier one (reasoning that is stripped, say), they
are not, and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, ToolCall
from alia_ctx.data.chat.json_text import leaves, parse, write
from alia_ctx.data.chat.showing import escaped, require_said, require_shown
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.documents.chat_spec import TrainOn


@dataclass(frozen=True)
class Turn:
    """Characters [start, stop) of an assistant's turn that are trained: its words, calls
    and stop token; `header` is where its header begins, if that is trained as well, or
    `start`; `calls` where its calls begin, None without any. `message`: its number.
    """

    message: int
    header: int
    start: int
    stop: int
    calls: int | None = None


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, its trained turns, where its contents spell special tokens,
    and where users and assistant say something: ranges of characters.
    """

    text: str
    turns: tuple[Turn, ...]
    spelled: tuple[tuple[int, int], ...]
    said: tuple[tuple[int, int], ...]


def render_turns(
    conversation: Conversation,
    template: ChatTemplate,
    special: re.Pattern[str],
    train_on: TrainOn,
) -> Rendered:
    """Render a conversation and find the turns that `train_on` asks for.

    special: matches each special token of the tokenizer. Raises RowError where the
    template refuses, where turns depend on later ones, where a turn has no stop token,
    or where the template does not show all that is there (`showing`).
    """
    messages = conversation.messages
    text = template.render(conversation)
    require_shown(conversation, template, text)
    spelled = _spelled(conversation, template, special, text)
    numbers = [n for n, message in enumerate(messages) if message.role == "assistant"]
    if train_on == "last_turn":
        numbers = numbers[-1:]
    turns = []
    for number in numbers:
        before = template.render(conversation.until(number), prompt=True)
        header = len(before)
        if train_on == "assistant_with_header":
            earlier = template.render(conversation.until(number))
            if not before.startswith(earlier):
                raise RowError(
                    "header_not_found",
                    f"turn {number}: what stands before it is rendered otherwise where "
                    "nobody is asked to speak, so that its header has no beginning; "
                    "train on assistant",
                )
            header = len(earlier)
        whole = number + 1 == len(messages)
        after = text if whole else template.render(conversation.until(number + 1))
        if not after.startswith(before):
            raise RowError(
                "depends_on_later_turns",
                f"what stands before turn {number} is rendered otherwise when the "
                "assistant is asked to speak than when it has spoken, so that its words "
                "have no beginning; take a template that renders both alike",
            )
        if not text.startswith(after):
            raise RowError(
                "depends_on_later_turns",
                f"turn {number} is rendered otherwise when it is the last; train on "
                "last_turn, or take a template that renders each turn alike",
            )
        ends = _own_tokens(after, len(before), special, spelled)
        stop = end_of_turn(
            after, len(before), ends, messages[number], number, special, template
        )
        require_said(messages[number], after[len(before) : stop], number)
        calls = _calls(conversation, template, special, after, len(before), number)
        turns.append(Turn(number, header, len(before), stop, calls))
    return Rendered(text, tuple(turns), spelled, _said(conversation, text))


def _said(conversation: Conversation, text: str) -> tuple[tuple[int, int], ...]:
    """Where the words of users and assistant and the values of calls stand: what one
    conversation has for itself, and not its tools and its template. What a template
    writes in a way of its own is left out.

    From the end: tools and system prompt, which may hold the same words, come first.
    """
    ranges: list[tuple[int, int]] = []
    end = len(text)
    for message in reversed(conversation.messages):
        if message.role not in ("user", "assistant"):
            continue
        parts = [(message.content or "").strip()]
        for call in message.calls:
            parts += [
                value if isinstance(value, str) else write(value)
                for argument in parse(call.arguments).values()
                for value in leaves(argument)
            ]
        for part in filter(None, reversed(parts)):
            for form in (part, escaped(part), escaped(part, ascii_only=True)):
                if (place := text.rfind(form, 0, end)) >= 0:
                    ranges.append((place, place + len(form)))
                    end = place
                    break
    return tuple(reversed(ranges))


def _own_tokens(
    text: str,
    start: int,
    special: re.Pattern[str],
    spelled: tuple[tuple[int, int], ...],
) -> list[tuple[int, int]]:
    """Where from `start` on special tokens of the template's stand."""
    return [
        match.span()
        for match in special.finditer(text, start)
        if not any(a < match.end() and match.start() < b for a, b in spelled)
    ]


def end_of_turn(
    text: str,
    start: int,
    tokens: list[tuple[int, int]],
    message: Message,
    number: int,
    special: re.Pattern[str],
    template: ChatTemplate,
) -> int:
    """End of the stop token of turn `number`, which begins at `start` and is the last of
    `text`; `tokens` are ranges of special tokens behind `start`.

    RowError as of `_stop`. What an export names as stop tokens comes from here too
    (`stops`).
    """
    stop = _stop(text, start, tokens, message, number)
    if not message.calls:
        return stop
    return _stop_of_calls(text, stop, tokens, special, template)


def _stop_of_calls(
    text: str,
    last: int,
    tokens: list[tuple[int, int]],
    special: re.Pattern[str],
    template: ChatTemplate,
) -> int:
    """End of the stop token of a turn that ends with calls: the one that ends turns of
    words, where the turn ends as these do; or the `last` special token, as some templates
    end calls with a token of their own.
    """
    closing = template.closing
    first = special.search(closing)
    if first is None or not text.endswith(closing):
        return last
    stop = len(text) - len(closing) + first.end()
    return stop if any(end == stop for _, end in tokens) else last


def _stop(
    text: str,
    start: int,
    tokens: list[tuple[int, int]],
    message: Message,
    number: int,
) -> int:
    """End of the stop token of the turn that begins at `start`: the special token of the
    template's that follows the turn's words, or the last one where calls end the turn.

    RowError where there is none, or where the template's own words stand before it: they
    are not the assistant's, and one who has not learned them does not come to its stop.
    (Behind calls: `probing`.)
    """
    content = message.content or ""
    words = content.strip()
    if tokens and words and not message.calls and words in text[start:]:
        blanks = content[len(content.rstrip()) :]
        for begin, end in reversed(tokens):
            before = text[start:begin]
            said = before.rstrip()
            if said.endswith(words) and blanks.startswith(before[len(said) :]):
                return end
        begin, end = tokens[-1]
        added = text[text.rindex(words, start) + len(words) : begin]
        raise RowError(
            "text_after_answer",
            f"the template writes {added[:40]!r} between the words of turn {number} and "
            f"its stop token {text[begin:end]!r}, which nobody said; take it out of the "
            "template",
        )
    if not tokens or text[tokens[-1][1] :].strip():
        raise RowError(
            "no_stop_token",
            f"turn {number} ends with {text[start:][-30:]!r}, no special token of the "
            "tokenizer: the model would not learn to stop",
        )
    return tokens[-1][1]


def _calls(
    conversation: Conversation,
    template: ChatTemplate,
    special: re.Pattern[str],
    text: str,
    start: int,
    number: int,
) -> int | None:
    """Where the calls of turn `number`, which begins at `start`, begin; None without any.
    Behind words they begin where the turn is rendered otherwise than without calls.
    """
    message = conversation.messages[number]
    if not message.calls:
        return None
    if not message.content and not message.reasoning:
        return start
    silent = replace(message, content=message.content or "", calls=())
    before = conversation.until(number)
    try:
        without = template.render(replace(before, messages=(*before.messages, silent)))
    except RowError:  # a template that has no turn of such words alone
        return start
    pairs = enumerate(zip(text, without, strict=False))
    same = next((n for n, (a, b) in pairs if a != b), min(len(text), len(without)))
    for match in special.finditer(without, start):
        if match.start() < same < match.end():  # the stop token may begin as calls do
            same = match.start()
    return max(same, start)


# Private characters that stand for a spelled token while its place is looked for.
_MARK = "\U00100000{}\U00100001"


def _spelled(
    conversation: Conversation,
    template: ChatTemplate,
    special: re.Pattern[str],
    text: str,
) -> tuple[tuple[int, int], ...]:
    """Ranges of `text` in which the conversation's contents, not the template, spell
    special tokens.

    Each is replaced by a mark, and the marks are looked for in what is rendered then;
    RowError where putting the tokens back does not give `text`.
    """
    tokens: list[str] = []

    def mark(match: re.Match[str]) -> str:
        tokens.append(match[0])
        return _MARK.format(tokens.index(match[0]))

    marked = _with_marks(conversation, lambda value: special.sub(mark, value))
    if not tokens:
        return ()
    if _MARK[0] in text:
        raise RowError(
            "special_token", f"contents hold {_MARK[0]!a} beside {tokens[0]}"
        )
    pieces = re.split(_MARK.format(r"(\d+)"), template.render(marked))
    ranges, rebuilt = [], ""
    for index, piece in enumerate(pieces):
        if index % 2:
            token = tokens[int(piece)]
            ranges.append((len(rebuilt), len(rebuilt) + len(token)))
            rebuilt += token
        else:
            rebuilt += piece
    if rebuilt != text:
        names = ", ".join(dict.fromkeys(tokens))
        raise RowError(
            "special_token", f"the template treats {names} in contents apart"
        )
    return tuple(ranges)


def _with_marks(
    conversation: Conversation, change: Callable[[str], str]
) -> Conversation:
    """The conversation with `change` made to every text in it, keys included."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return [changed(item) for item in value]
        if isinstance(value, dict):
            return {change(key): changed(item) for key, item in value.items()}
        return value

    def in_json(text: str) -> str:
        return write(changed(parse(text)))

    messages = [
        Message(
            message.role,
            changed(message.content),
            tuple(
                ToolCall(change(call.name), in_json(call.arguments), changed(call.id))
                for call in message.calls
            ),
            changed(message.name),
            changed(message.call_id),
            changed(message.reasoning),
        )
        for message in conversation.messages
    ]
    tools = conversation.tools
    return Conversation(tuple(messages), None if tools is None else in_json(tools))


def special_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches each of `tokens`, the longest where several begin at one place."""
    longest_first = sorted(filter(None, tokens), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
