"""Calls that stand among an assistant's words, in any form that readers of calls know."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from alia_ctx.data.chat.json_text import parse_at

# <tool_call>, <TOOLCALL>, <functioncall>, <function_calls>, <|tool_call_begin|>, ...
_TAG = (
    r"(<[|｜]?(?:tool|function)[_▁ -]?calls?(?:[_▁]\w+)*[|｜]?>|\[TOOL_CALLS?\]"
    r"|<\|python_tag\|>)"
)
_PREFIX = r"(?:functions\.)?"
# Tags in prose have prose behind them; calls a bracket, a name, or a tag of their own.
_BEGUN = (
    rf"\s*(?:[\[{{]|<(?:function|invoke|parameter|arg|name|[|｜])|{_PREFIX}[\"']?NAMES(?!\w)"
    r"|[\w.-]+(?:\s*\n\s*)?(?:[\[{(]|<(?!/))|(?:name|function|tool)\s*:)"
)
# A block by itself, whatever its body is but dots in the place of one.
_BLOCK = r"^[ \t]*(<tool_call>)[^\w\n]*\n(?=[^<]*\w).*?</tool_call>"
_WHOLE_BLOCK = r"\A\s*(<tool_call>)(?=[^<]*\w).*</tool_call>\s*\Z"
_NAMED = (
    rf"(<function={_PREFIX}NAMES>|<invoke name=[\"']?NAMES\b|\bto=functions\.NAMES\b)"
)
_OTHER_NAMED = r"(<function=[^<>\s]+>)\s*[{<]"
_TAGGED = "|".join((_TAG + _BEGUN, _BLOCK, _WHOLE_BLOCK, _NAMED, _OTHER_NAMED))

# Of JSON or a dict of Python, also one that breaks off.
_NAME_PAIR = (
    r"[\"'](?:name|function|tool|tool_name|function_name|action|recipient_name)[\"']\s*:\s*"
    rf"[\"']{_PREFIX}NAMES[\"']"
)
# Parameters that are a schema are a definition's: somebody speaks of the tool.
_ARGUMENTS_PAIR = re.compile(
    r"[\"'](?:arguments|parameters|args|input|kwargs|params|tool_input|action_input)[\"']"
    r"\s*:\s*(?:[\"']|\{(?!\s*[\"'](?:type[\"']\s*:\s*[\"']object|properties[\"'])))"
)

# Possessive: a line of many quotation marks that is no call is read once.
_INSIDE = r"(?:\"(?:[^\"\\]|\\.)*+\"|'(?:[^'\\]|\\.)*+'|\([^()]*\)|[^()])*+"
_CALL = rf"{_PREFIX}NAMES(?:\.call)?\({_INSIDE}\)"
_ONLY_CALLS = (
    rf"\[\s*NAMES\s*\(.*\)\s*\]|\[?\s*+{_CALL}(?:[\s;,]*+{_CALL})*+\s*+\]?[\s;,]*+"
)
# `f()` and `f(city)` in a line by themselves may be an enumeration of what there is.
_GIVEN = r"(?=[^\n(]*\(\s*(?:[\w.-]+\s*=(?!=)|[\"'\d{\[-]))"
_LINE = _CALL.replace("[^", r"[^\n")
_CALLS_LINE = (
    rf"^[ \t]*+{_GIVEN}\[?[ \t]*+{_LINE}(?:[ \t]*+[;,][ \t]*+{_LINE})*+"
    r"[ \t]*+\]?[ \t]*+[;,]?[ \t]*+$"
)
_FENCED = re.compile(r"```\w*\s*(.*?)\s*```", re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")


def written_call(words: str, offered: Collection[str]) -> str | None:
    """The tag, or the beginning, of a call among an assistant's words; None where there is
    none. `offered`: names of functions.

    A call is a tag with one behind it (`<tool_call>`, `<function=f>`, `[TOOL_CALLS]`),
    whether its reader could read it or not; an object, of JSON or Python, with the name of
    an offered function and arguments; a line `f(a=1)`; or words that are nothing but calls.
    Prose may name functions and tags, enumerate functions and show their definitions.
    """
    words = words.strip()
    if not re.search(r"[<({\[=]", words):
        return None
    if match := re.search(_of(_TAGGED, offered), words, re.DOTALL | re.MULTILINE):
        return next(group for group in match.groups() if group)
    words = words.rpartition("</think>")[2].strip()  # drafts of calls are no calls
    fenced = _FENCED.fullmatch(words)
    words = fenced[1] if fenced else words
    if re.fullmatch(_of(_ONLY_CALLS, offered), words, re.DOTALL) or _is_json(words):
        return words[:40]
    match = re.search(_of(_NAME_PAIR, offered), words)
    if match is None or not _ARGUMENTS_PAIR.search(words):
        match = re.search(_of(_CALLS_LINE, offered), words, re.MULTILINE)
    return match[0].strip()[:40] if match else None


def _of(pattern: str, offered: Collection[str]) -> str:
    """The pattern with the names of functions in their place."""
    longest_first = sorted(offered, key=len, reverse=True)
    return pattern.replace("NAMES", f"(?:{'|'.join(map(re.escape, longest_first))})")


def _is_json(words: str) -> bool:
    """Whether words are calls as JSON and nothing else: one, an array, or one after another."""
    values, place = list[Any](), 0
    try:
        while place < len(words) and words[place] in "[{":
            value, end = parse_at(words, place)
            values += value if isinstance(value, list) else [value]
            between = _BETWEEN.match(words, end)
            place = between.end() if between else end
    except ValueError:
        return False
    return place == len(words) and bool(values) and all(map(_is_call, values))


def _is_call(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    function = value.get("function")
    function = function if isinstance(function, dict) else value
    return "name" in function and bool({"arguments", "parameters"} & {*function})
