"""What a model writes before it speaks: its reasoning, between tags.

The tags are those of Qwen 3 and DeepSeek-R1 (`<think>`), Magistral (`[THINK]`), Seed-OSS
(`<seed:think>`), Command A (`<|START_THINKING|>`), and others' names for the same. Some
prompts end with the first of them, so that a model writes the closing one alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_NAMES = r"(?:think|thinking|thought|reasoning|seed:think)"
_OPEN = rf"<{_NAMES}>|\[THINK\]|<\|START_THINKING\|>"
_CLOSE = rf"</{_NAMES}>|\[/THINK\]|<\|END_THINKING\|>"
_TAG = re.compile(rf"(?P<open>{_OPEN})|{_CLOSE}")
_CLOSING = re.compile(_CLOSE)
_OPENED = re.compile(rf"(?:{_OPEN})\s*\Z")


def opened_reasoning(prompt: str) -> str:
    """The tag, and blanks, with which a prompt has the model go on reasoning; "" where it
    ends otherwise.
    """
    found = _OPENED.search(prompt)
    return found[0] if found else ""


def split_reasoning(
    text: str, calls: Callable[[str], str] = lambda text: ""
) -> tuple[str, str]:
    """What a model reasoned, and what it said then: a text without tags is said.

    Reasoning that is not closed at the text's head goes to its end, as in vLLM's parsers:
    the model was cut while it reasoned. What stands before a closing tag that nothing
    opens is reasoning too, unless a call was made there after the reasoning.

    Args:
        calls: gives the calls that are read of a text, written out, "" for none. A tag
            inside a call is a value of it.
    """
    thoughts: list[str] = []
    said = text
    while tag := _TAG.search(said):
        before, after = said[: tag.start()], said[tag.end() :]
        begun = bool(before.strip())
        if begun and _TAG.search(calls(said)):
            break
        if tag["open"]:
            closing = _CLOSING.search(after)
            if closing is None and begun:  # words about a tag
                break
            thoughts.append(after[: closing.start()] if closing else after)
            said = before + (after[closing.end() :] if closing else "")
        elif thoughts and calls(before):
            said = before + after
        else:
            thoughts.append(before)
            said = after
    reasoning = "\n".join(filter(None, map(str.strip, thoughts)))
    return reasoning, said
