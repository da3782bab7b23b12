"""Nothing that a record says beside its turns, or a turn beside its words, is lost unsaid."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import Conversation, RowError
from alia_ctx.data.chat.forms import read_record

TOOLS = [{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}]
USER = {"role": "user", "content": "u"}
DONE = {"role": "assistant", "content": "done"}


def names(read: Conversation) -> list[str]:
    return [tool["function"]["name"] for tool in read.tools_for_template() or []]


def results(read: Conversation) -> list[str | None]:
    return [message.content for message in read.messages if message.role == "tool"]


def reason(record: Any, form: str = "auto") -> str:
    with pytest.raises(RowError) as refused:
        read_record(record, form)
    return refused.value.reason


def arguments(call: dict[str, Any]) -> str:
    turn = {"role": "assistant", "tool_calls": [call]}
    read = read_record({"messages": [USER, turn], "tools": TOOLS})
    return read.messages[-1].calls[0].arguments


SHARES = {
    "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
}
TALKS: dict[str, dict[str, Any]] = {
    "openai": {"messages": [USER, DONE]},
    "dolci": {"messages": [USER, DONE]},
    "when2call": {"messages": [USER, DONE], "tools": []},
    "toucan": {"messages": json.dumps([USER, DONE])},
    "sharegpt": SHARES,
}


@pytest.mark.parametrize("form", TALKS)
@pytest.mark.parametrize("column", ["tools", "functions", "available_tools"])
def test_tools_are_read_from_each_column(form: str, column: str) -> None:
    for empty in (None, [], "", "[]"):
        beside = {"tools": empty, column: json.dumps(TOOLS)}
        assert names(read_record({**TALKS[form], **beside}, form)) == ["f", "g"]
    two = {"tools": TOOLS, "functions": TOOLS[:1]}
    assert reason({**TALKS[form], **two}, form) == "unparsable_tools"


@pytest.mark.parametrize("form", TALKS)
@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_prompt_beside_the_turns_is_the_first_turn(
    form: str, column: str
) -> None:
    read = read_record({**TALKS[form], column: "In French."}, form)
    assert [m.content for m in read.messages if m.role == "system"] == ["In French."]
    assert read.messages[0].role == "system"
    assert reason({**TALKS[form], column: ["x"]}, form) == "content_not_text"


def test_a_system_prompt_that_is_there_twice_comes_once() -> None:
    turns = [{"role": "system", "content": "S"}, USER, DONE]
    read = read_record({"messages": turns, "system": "S"})
    assert [m.role for m in read.messages] == ["system", "user", "assistant"]
    assert reason({"messages": turns, "system": "T"}) == "wrong_role_order"


def test_xlam_keeps_a_system_prompt() -> None:
    answers = json.dumps([{"name": "f", "arguments": {}}])
    xlam = {"query": "q", "answers": answers, "tools": json.dumps(TOOLS)}
    assert read_record({**xlam, "system": "S"}).messages[0].content == "S"


@pytest.mark.parametrize("column", ["functions", "available_tools", "system_prompt"])
def test_a_column_that_a_form_has_elsewhere_is_the_same_or_refused(column: str) -> None:
    listed = f"Here is a list of functions in JSON format:\n{json.dumps(TOOLS)}"
    glaive = {
        "system": f"S {json.dumps(TOOLS[0])} {json.dumps(TOOLS[1])}",
        "chat": "USER: u\n\n\nASSISTANT: a <|endoftext|>",
    }
    for form, record in (
        ("glaive", glaive),
        ("toolace", {"system": listed, **SHARES}),
    ):
        same = "" if column == "system_prompt" else TOOLS
        other = "T" if column == "system_prompt" else TOOLS[:1]
        assert names(read_record({**record, column: same}, form)) == ["f", "g"]
        assert reason({**record, column: other}, form) == "unread_column"


def test_tools_of_a_turn_are_offered() -> None:
    turns = [{"role": "system", "content": "S", "tools": TOOLS}, USER, DONE]
    assert names(read_record({"messages": turns})) == ["f", "g"]
    assert reason({"messages": turns}, "openai") == "unparsable_tools"


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input", "kwargs"])
def test_arguments_are_read_under_each_name(key: str) -> None:
    given = {"arguments": None, key: {"a": 1}}
    assert arguments({"name": "f", **given}) == '{"a": 1}'
    assert arguments({"function": {"name": "f", **given}}) == '{"a": 1}'
    assert arguments({"function": {"name": "f"}, **given}) == '{"a": 1}'
    assert arguments({"name": "f", "arguments": {}, **given, key: {"a": 1}})


def test_arguments_that_may_be_lost_are_refused() -> None:
    for call in (
        {"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}},
        {"name": "f", "params": {"a": 1}},
        *(
            call
            for empty in ({}, "{}", "", " ")
            for lost in ({"a": 1}, '{"a": 1}', "{'a': 1}")
            for call in (
                {"name": "f", "arguments": empty, "params": lost},
                {"name": "f", "parameters": empty, "function_args": lost},
                {"function": {"name": "f", "arguments": empty, "inputs": lost}},
                {"function": {"name": "f", "arguments": empty}, "tool_input": lost},
            )
        ),
        {"function": {"name": "f", "arguments": {"a": 1}}, "arguments": {"a": 2}},
    ):
        turn = {"role": "assistant", "tool_calls": [call]}
        record = {"messages": [USER, turn], "tools": TOOLS}
        assert reason(record) == "unparsable_call"
    assert arguments({"name": "f", "id": "1", "type": "function", "index": 0}) == "{}"


def test_arguments_beside_an_empty_nested_object_are_read() -> None:
    nested = {"function": {"name": "f", "arguments": {}}, "arguments": {"a": 1}}
    assert arguments(nested) == '{"a": 1}'


@pytest.mark.parametrize(
    "beside",
    [
        {"result": {"told": 1}},
        {"tool_response": '{"told": 1}'},
        {"provider_specific_fields": {"thought": "x"}},
        {"extra_content": {"google": {"thought_signature": "x"}}},
        {"cache_control": {"type": "ephemeral"}},
        {"status": "done", "params": {}, "options": None, "note": "{see a}"},
    ],
)
def test_what_stands_beside_a_call_without_arguments_is_none(
    beside: dict[str, Any],
) -> None:
    assert arguments({"name": "f", "arguments": {}, **beside}) == "{}"
    assert arguments({"function": {"name": "f", "arguments": "{}"}, **beside}) == "{}"
    # Beside arguments that are there anything is something else.
    assert arguments({"name": "f", "arguments": {"a": 1}, "params": {"b": 2}})


def answered(
    first: dict[str, Any], second: dict[str, Any], *ids: Any
) -> dict[str, Any]:
    calls = [{"name": name, "arguments": {}} for name in "fg"]
    for call, identity in zip(calls, ids, strict=False):
        call.update(identity)
    asks = {"role": "assistant", "tool_calls": calls}
    told = [{"role": "tool", **result} for result in (first, second)]
    return {"messages": [USER, asks, *told, DONE], "tools": TOOLS}


@pytest.mark.parametrize("call_key", ["id", "call_id"])
@pytest.mark.parametrize("key", ["tool_call_id", "call_id", "id"])
@pytest.mark.parametrize("ids", [("a", "b"), (1, 2), (0, 1)])
def test_results_go_to_their_calls_by_ids_of_any_name(
    call_key: str, key: str, ids: tuple[Any, Any]
) -> None:
    record = answered(
        {"content": "of g", key: ids[1]},
        {"content": "of f", key: ids[0]},
        {call_key: ids[0]},
        {call_key: ids[1]},
    )
    assert results(read_record(record)) == ["of f", "of g"]


def test_an_id_of_the_turn_itself_is_no_call() -> None:
    record = answered(
        {"content": "of f", "id": "m1"}, {"content": "of g", "id": "m2"}, {"id": "a"}
    )
    assert results(read_record(record)) == ["of f", "of g"]


def test_results_without_ids_go_to_the_calls_that_they_name() -> None:
    record = answered(
        {"content": "of g", "name": "g"}, {"content": "of f", "name": "f"}
    )
    assert results(read_record(record)) == ["of f", "of g"]
    record = answered({"content": "1", "name": "g"}, {"content": "2", "name": "h"})
    assert reason(record) == "result_without_call"
    record = answered({"content": "1", "name": "g"}, {"content": "2", "name": "g"})
    assert reason(record) == "call_without_result"


def test_results_of_one_function_stay_in_their_order() -> None:
    calls = [{"name": name, "arguments": {"n": n}} for n, name in enumerate("fgf")]
    told = [
        {"role": "tool", "name": name, "content": content}
        for name, content in (("g", "1"), ("f", "0"), ("f", "2"))
    ]
    asks = {"role": "assistant", "tool_calls": calls}
    record = {"messages": [USER, asks, *told, DONE], "tools": TOOLS}
    assert results(read_record(record)) == ["0", "1", "2"]


def test_a_chosen_answer_keeps_its_calls() -> None:
    chosen = {"content": "Words.", "tool_calls": [{"name": "f", "arguments": {}}]}
    record = {"messages": [USER], "tools": TOOLS, "chosen_response": chosen}
    last = read_record(record).messages[-1]
    assert (last.content, [call.name for call in last.calls]) == ("Words.", ["f"])


def test_a_call_told_in_both_ways_is_one() -> None:
    call = {"name": "f", "arguments": "{}"}
    turn = {"role": "assistant", "tool_calls": [{"function": call}]}
    read = read_record(
        {"messages": [USER, {**turn, "function_call": call}], "tools": TOOLS}
    )
    assert len(read.messages[-1].calls) == 1
    other = {**turn, "function_call": {"name": "g", "arguments": "{}"}}
    assert reason({"messages": [USER, other], "tools": TOOLS}) == "unparsable_call"
    dolci = {**turn, "function_calls": "f()"}
    assert reason({"messages": [USER, dolci], "tools": TOOLS}) == "unparsable_call"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_each_name(key: str) -> None:
    said = read_record({"messages": [USER, {**DONE, key: "Because."}]}).messages[-1]
    assert said.reasoning == "Because."
    said = read_record({"messages": [USER, {**DONE, key: " \n"}]}).messages[-1]
    assert said.reasoning is None
    calls = {**DONE, key: "Because.", "function_calls": "f()"}
    read = read_record({"messages": [USER, calls], "tools": TOOLS})
    assert read.messages[-1].reasoning == "Because."


def test_reasoning_that_is_no_text_is_refused() -> None:
    record = {"messages": [USER, {**DONE, "reasoning_content": {"a": 1}}]}
    assert reason(record) == "content_not_text"


def test_literals_of_python_lose_no_key_and_say_nothing() -> None:
    def read(calls: str) -> Conversation:
        turn = {"role": "assistant", "content": "", "function_calls": calls}
        return read_record({"messages": [USER, turn], "tools": TOOLS})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call = read(r"f(a='\d', b=(1, (2.5, 'x')))").messages[-1].calls[0]
    assert json.loads(call.arguments) == {"a": r"\d", "b": [1, [2.5, "x"]]}
    with pytest.raises(RowError, match="no text"):
        read("f(a=({1: 2},))")
