"""vLLM's rules for calls as Hermes writes them (`--tool-call-parser hermes`), from its
documentation and its parser's behaviour, written anew: what `alia_ctx` makes is read with
it and nothing of `alia_ctx`.

A call is the JSON between `<tool_call>` and the next `</tool_call>`, or the end of the
text, with `name` and `arguments`; a tag that opens within one is its text. Content is
what stands before the first tag. Where one call cannot be read, the whole text is
content. A stream gives content up to what may begin a tag, then of each call its name,
and its arguments as they are written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def read(text: str) -> tuple[str, list[tuple[str, Any]]]:
    """Content, and name and arguments of each call."""
    content, opened, rest = text.partition(OPEN)
    calls = []
    while opened:
        part, _, rest = rest.partition(CLOSE)
        try:
            call = json.loads(part)
            name, arguments = call["name"], call["arguments"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return text, []
        if not isinstance(name, str):  # a field of pydantic's `FunctionCall`
            return text, []
        calls.append((name, arguments))
        _, opened, rest = rest.partition(OPEN)
    return (content, calls) if calls else (text, [])


@dataclass
class Stream:
    """Reads whole calls as they come. `calls` has a name and the text of arguments each."""

    content: str = ""
    calls: list[list[str]] = field(default_factory=list)
    _text: str = ""

    def feed(self, delta: str) -> None:
        self._text += delta
        before, *parts = self._text.split(OPEN)
        if not parts:
            kept = max(
                n for n in range(len(OPEN)) if before.endswith(OPEN[:n]) or not n
            )
            before = before[: len(before) - kept]
        assert before.startswith(self.content)
        self.content = before
        for number, part in enumerate(parts):
            self._call(number, part)

    def _call(self, number: int, part: str) -> None:
        head, found, rest = part.partition('"arguments": ')
        if not found:
            return
        name = json.loads(head.strip().removesuffix(",") + "}")["name"]
        if len(self.calls) == number:
            self.calls.append([name, ""])
        body, closed, _ = rest.partition("\n" + CLOSE)
        # The brace that closes the call comes after the arguments' own.
        written = body.removesuffix("}") if closed else _without_last(rest)
        assert written.startswith(self.calls[number][1]) or not closed
        if len(written) > len(self.calls[number][1]):
            self.calls[number][1] = written


def _without_last(text: str) -> str:
    """Arguments so far: without what may be the call's brace and the tag after it."""
    for size in range(len("}\n" + CLOSE), 0, -1):
        if text.endswith(("}\n" + CLOSE)[:size]):
            return text[:-size]
    return text
