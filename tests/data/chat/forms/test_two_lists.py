"""Two lists of tools in a record are one list only where a model would be shown the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import read_record

LIST: list[dict[str, Any]] = [
    {
        "name": "f",
        "description": "does it",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "default": 1}},
            "required": [],
        },
    },
    {
        "name": "g",
        "description": "does more",
        "parameters": {"type": "object", "properties": {}},
    },
]
SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Which a?"}]
SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "Which a?"}]


def openai(one: Any, other: Any) -> Any:
    return {"messages": SAID, "tools": one, "functions": other}


def hermes(one: Any, other: Any) -> Any:
    prompt = {"from": "system", "value": f"<tools>\n{json.dumps(one)}\n</tools>"}
    return {"conversations": [prompt, *SHARE], "tools": other}


def toolace(one: Any, other: Any) -> Any:
    return {
        "system": f"Functions: {json.dumps(one)}",
        "conversations": SHARE,
        "available_tools": other,
    }


def glaive(one: Any, other: Any) -> Any:
    listed = "\n".join(map(json.dumps, one))
    chat = "USER: q\n\n\nASSISTANT: Which a? <|endoftext|>"
    return {"system": f"SYSTEM: {listed}", "chat": chat, "tools": other}


def dolci(one: Any, other: Any) -> Any:
    first, second = SAID
    return {"messages": [{**first, "functions": one}, {**second, "functions": other}]}


def xlam(one: Any, other: Any) -> Any:
    answers = [{"name": "f", "arguments": {}}]
    beside = {"tools": one, "functions": other}
    return {"query": "q", "answers": answers, **beside}


ROWS: dict[str, Callable[[Any, Any], Any]] = {
    "openai": openai,
    "sharegpt": hermes,
    "toolace": toolace,
    "glaive": glaive,
    "dolci": dolci,
    "xlam": xlam,
}


def changed(change: Callable[[Any], Any]) -> Any:
    tools = copy.deepcopy(LIST)
    change(tools)
    return tools


@pytest.mark.parametrize("form", ROWS)
def test_lists_that_differ_in_anything_are_two(form: str) -> None:
    for change in (
        lambda tools: tools[0]["parameters"].update(
            properties={"b": {"type": "integer"}}
        ),
        lambda tools: tools[0]["parameters"]["properties"]["a"].update(type="string"),
        lambda tools: tools[0]["parameters"]["properties"]["a"].update(default=True),
        lambda tools: tools[0]["parameters"].update(required=["a"]),
        lambda tools: tools[1].update(description="does less"),
        lambda tools: tools.pop(),
        lambda tools: tools.append({"name": "h", "parameters": {}}),
    ):
        other = changed(change)
        with pytest.raises(RowError) as refused:
            read_record(ROWS[form](LIST, other), form)
        assert refused.value.reason in ("unparsable_tools", "unread_column"), other


@pytest.mark.parametrize("form", ROWS)
def test_lists_that_are_only_written_otherwise_are_one(form: str) -> None:
    nested = [{"type": "function", "function": tool} for tool in LIST]
    turned = [dict(reversed(tool.items())) for tool in LIST]
    for same in (LIST, nested, turned, LIST[::-1], [*map(json.dumps, LIST)]):
        for other in (same, json.dumps(same)):
            read = read_record(ROWS[form](LIST, other), form)
            names = [
                tool["function"]["name"] for tool in read.tools_for_template() or []
            ]
            assert sorted(names) == ["f", "g"]


def test_types_of_pythons_are_compared_as_they_are_shown() -> None:
    plain = [{"name": "f", "description": "d", "parameters": {"a": {"type": "int"}}}]
    row = {"query": "q", "answers": [{"name": "f", "arguments": {"a": 1}}]}
    assert read_record(
        {**row, "tools": plain, "functions": json.dumps(plain)}, "xlam"
    ).tools
    other = [{**plain[0], "parameters": {"a": {"type": "str"}}}]
    with pytest.raises(RowError, match="unread_column: 'functions'"):
        read_record({**row, "tools": plain, "functions": other}, "xlam")
