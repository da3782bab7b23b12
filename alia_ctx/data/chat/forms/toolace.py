"""Team-ACE/ToolACE: `system` with a JSON list of functions, `conversations` of `from` and
`value`, calls as `[Func Name(a=1, b="x"), G()]`; names may have blanks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from alia_ctx.data.chat.conversation import (
    Conversation,
    Message,
    RowError,
    function_of,
    tools_text,
)
from alia_ctx.data.chat.forms.beside import sentences
from alia_ctx.data.chat.forms.calls import (
    ARGUMENT_KEYS,
    calls_from_json,
    pythonic_calls,
)
from alia_ctx.data.chat.forms.definitions import (
    introduces_functions,
    is_definition,
    name_of,
)
from alia_ctx.data.chat.forms.messages import messages_from
from alia_ctx.data.chat.json_text import parse, parse_at
from alia_ctx.data.chat.written_calls import written_call

# The set's own instructions ask for its own form of calls, which the template replaces.
# Sentence by sentence: whatever else stands between these is the user's own.
_INSTRUCTIONS = sentences(
    r"You are an expert in composing functions\.",
    r"You are given a question(?: from a user)? and a set of possible functions\.",
    r"Based on the question, you will need to make one or more function/tool calls to achieve "
    r"the purpose\.",
    r"If none of the functions? can be used, point it out\.",
    r"If the given question lacks the parameters required by the function, also point it out\.",
    r"You should only return the function calls? in tools? calls? sections?\.",
    r"Here is a list of functions in JSON format that you can invoke[:.]",
    r"Should you decide to return the function call\(s\)(?:\.|,(?=\s*Put it in the format of))",
    r"Put it in the format of \[func[^\[\]]*\]\.?",
    r"NO other text MUST be included\.?",
)


_INTRODUCED = "functions in JSON format"


def read(record: dict[str, Any]) -> Conversation:
    prompt, tools = _split_system(record)
    messages = messages_from(record["conversations"], "from", "value")
    head = [Message("system", prompt)] if prompt else []
    names = [function_of(tool)["name"] for tool in parse(tools or "[]")]
    begun = _Begun(names)
    return Conversation((*head, *(_with_calls(m, begun) for m in messages)), tools)


# `[Func(a=`, `[Func()`, of a function whether offered or not.
_BRACKET = re.compile(r"\s*\[\s*[^\s\[\](){}=,][^\[\](){}=,]*\(\s*(\)|[\w.-]+\s*=)")
# `[func(...)]` without words behind a closing bracket; possessive, for answers of many blanks.
_ONLY_BRACKETS = re.compile(
    r"\s*\[\s*+[^\[\](){}=,]*[^\s\[\](){}=,]\((?!.*\]\s*[^\s\[\](){},;'\"]).*\]\s*\Z",
    re.DOTALL,
)
_JSON = re.compile(r"""\s*\[?\s*\{\s*['"](name|function)['"]\s*:""")
_ARGUMENTS = re.compile(rf"""['"]({"|".join(ARGUMENT_KEYS)})['"]\s*:""")


class _Begun:
    """What can only be meant as a call of an offered function, whole or broken."""

    def __init__(self, names: list[str]) -> None:
        longest_first = sorted(names, key=len, reverse=True)
        name = rf"(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!\w)"
        argument = r"[\w.-]+\s*=(?!=)"
        group = r"[\[({](?:[^\[\](){}]|[\[({][^\[\](){}]*[\])}])*[\])}]"
        either = (
            # The answer's first bracket, the name, and what only a call has next.
            rf"\A\s*\[\s*{name}(?:[({{]|\s*[{{:,-]|,?\s*{argument}|\s*\Z)",
            rf"\A\s*\[\s*{name}\s*\(\s*(?:[)\"'\d\[{{]|\Z)",
            rf"\A\s*\[\s*{name}\s+[\w.-]+\s*:\s*[\"'\d\[{{]",
            # The name and an argument, wherever they stand.
            rf"(?<!\w){name}\s*\(\s*{argument}",
            rf"(?<!\w){name}[\"']?\s*[:,]?\s*\{{\s*[\"']",
            # Nothing but the name and brackets.
            rf"\A[\s(]*{name}\s*{group}[\s\])}},;]*\Z",
        )
        self._pythonic = re.compile("|".join(either))
        self._json = re.compile(rf"""['"](name|function)['"]\s*:\s*['"]{name}['"]""")

    def pythonic(self, words: str) -> bool:
        return self._pythonic.search(words) is not None

    def json(self, words: str) -> bool:
        """Or of another function, which has arguments; other data has names, too."""
        meant = self._json.search(words) or _ARGUMENTS.search(words)
        return _JSON.match(words) is not None and meant is not None


def _with_calls(message: Message, begun: _Begun) -> Message:
    words = message.content or ""
    if message.role != "assistant":
        return message
    if begun.json(words):
        return Message("assistant", None, calls_from_json(words))
    broken = _BRACKET.match(words) or _ONLY_BRACKETS.match(words)
    if broken or begun.pythonic(words):
        return Message("assistant", None, pythonic_calls(words))
    return message


def has_tools(record: Mapping[str, Any]) -> bool:
    """Whether a record's system prompt lists functions as ToolACE does, or says so with
    its words: a list that cannot be read makes no other form of it.
    """
    system = record.get("system")
    return isinstance(system, str) and (
        _INTRODUCED in system or _list_of_functions(system, record) is not None
    )


def _split_system(record: Mapping[str, Any]) -> tuple[str, str | None]:
    """What is left of the prompt without the list and the instructions, and the list."""
    system = record["system"]
    if not isinstance(system, str):
        detail = f"system is {type(system).__name__}, no text"
        raise RowError("content_not_text", detail)
    place = _list_of_functions(system, record)
    if place is None:
        if _INTRODUCED in system:
            raise RowError(
                "unparsable_tools",
                "system: its list of functions is no JSON of named ones",
            )
        return system.strip(), None
    start, stop = place
    rest = f"{system[:start].rstrip()}\n{system[stop:].lstrip(' .')}"
    rest = _INSTRUCTIONS.sub("", rest)
    return rest.strip(), tools_text(system[start:stop])


def _list_of_functions(
    system: str, record: Mapping[str, Any]
) -> tuple[int, int] | None:
    """Where the first JSON list of functions is: one of them is defined with a schema, the
    set's own words stand before the list, or the assistant calls what is in it.
    """
    for match in re.finditer(r"\[", system):
        try:
            value, stop = parse_at(system, match.start())
        except ValueError:
            continue
        # An empty list is no list of functions: prompts speak of `[]`.
        if not isinstance(value, list) or not value:
            continue
        names = [name for item in value if (name := name_of(item)) is not None]
        if len(names) == len(value) and (
            any(map(is_definition, value))
            or introduces_functions(system[: match.start()])
            or any(_calls_one(answer, names) for answer in _answers(record))
        ):
            return match.start(), stop
    return None


def _calls_one(answer: str, names: list[str]) -> bool:
    """Whether an answer calls something; JSON with parameters alone may be a copy of it."""
    is_json = answer.lstrip().startswith(("{", "[{"))
    copied = is_json and not re.search(r"""['"]arguments['"]\s*:""", answer)
    return not copied and written_call(answer, names) is not None


def _answers(record: Mapping[str, Any]) -> list[str]:
    """What the assistant says, as far as the turns can be read."""
    turns = record.get("conversations")
    if isinstance(turns, str):
        with suppress(ValueError):
            turns = parse(turns)
    turns = turns if isinstance(turns, list) else []
    said = [
        turn.get("value")
        for turn in turns
        if isinstance(turn, dict) and turn.get("from") in ("assistant", "gpt")
    ]
    return [words for words in said if isinstance(words, str)]
