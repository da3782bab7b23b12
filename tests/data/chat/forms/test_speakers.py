"""Words of users and results of tools never become an assistant's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import read_record

TOOL = {"name": "f", "parameters": {"type": "object", "properties": {}}}
NESTED = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
CALLS: list[dict[str, Any]] = [
    {"tool_calls": NESTED},
    {"tool_calls": json.dumps(NESTED)},
    {"function_call": NESTED[0]["function"]},
]
ASKED = {"role": "user", "content": "q"}
CALLED = {"role": "assistant", "tool_calls": NESTED + NESTED}


def result(words: str) -> dict[str, Any]:
    return {"role": "tool", "content": words}


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize(
    ("before", "who"),
    [
        ([ASKED, CALLED, result("1"), result("2")], "tool"),
        ([ASKED, CALLED, result("1"), result("2")], "function"),
        ([ASKED, {"role": "user", "content": "more"}], "user"),
        ([{"role": "system", "content": "be brief"}], "system"),
        ([{"role": "system", "content": "be brief"}], "developer"),
    ],
)
def test_who_calls_and_is_no_assistant_is_refused(
    calls: dict[str, Any], before: list[dict[str, Any]], who: str
) -> None:
    turns = [*before, {"role": who, "content": None, **calls}]
    shared = [{"from": t["role"], "value": t.get("content"), **t} for t in turns]
    for row in ({"messages": turns}, {"conversations": shared}):
        for messages in (row, {k: json.dumps(row[k]) for k in row}):
            with pytest.raises(RowError, match=r"result_without_call|wrong_role_order"):
                read_record({**messages, "tools": [TOOL]})


def test_results_in_tags_do_not_hide_a_user_s_calls() -> None:
    prompt = {"role": "system", "content": f"<tools>[{json.dumps(TOOL)}]</tools>"}
    asks = {
        "role": "assistant",
        "content": '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
    }
    tells = {
        "role": "user",
        "content": "<tool_response>1</tool_response>",
        "tool_calls": NESTED,
    }
    turns = [prompt, ASKED, asks, tells, {"role": "assistant", "content": "1"}]
    with pytest.raises(RowError, match=r"wrong_role_order|call_without_result"):
        read_record({"messages": turns})
    del tells["tool_calls"]
    read = read_record({"messages": turns})
    assert [m.role for m in read.messages] == ["user", "assistant", "tool", "assistant"]


def test_an_assistant_s_calls_still_join_its_words() -> None:
    words = {"role": "assistant", "content": "Let me see."}
    turns = [ASKED, words, {"role": "assistant", **CALLS[0]}, {"role": "tool_call"}]
    turns[-1]["content"] = json.dumps(NESTED[0])
    read = read_record({"messages": turns, "tools": [TOOL]})
    assert read.messages[1].content == "Let me see."
    assert [call.name for call in read.messages[1].calls] == ["f", "f"]
