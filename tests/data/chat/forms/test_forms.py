"""Each form's records become the conversation that they mean; forms tell themselves apart."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import FORMS, form_of, read_record
from alia_ctx.data.chat.json_text import parse, write
from alia_ctx.data.documents.chat_spec import ChatForm
from tests.data.chat import conversations
from tests.data.chat.conversations import cases
from tests.data.chat.talks import nested


def test_every_form_has_a_name_in_the_configuration() -> None:
    assert {"auto", *FORMS} == {*get_args(ChatForm)} == {"auto", *conversations.FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_records_become_what_they_mean(form: str) -> None:
    for case in cases(form):
        for name in (form, "auto"):
            read = read_record(json.loads(json.dumps(case.record)), name)
            assert read.messages_for_template() == case.messages
            assert read.tools_for_template() == nested(case.tools)


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_told_apart_by_their_columns(form: str) -> None:
    found = {form_of(case.record) for case in cases(form, 100)}
    assert found == {form}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_again_as_the_same(form: str) -> None:
    for case in cases(form, 60):
        read = read_record(case.record, form)
        assert read_record(parse(write(read.to_record())), "openai") == read


def test_numbers_and_the_order_of_keys_stay_as_they_were_written() -> None:
    schema = '{"name": "f", "parameters": {"type": "object", "x": 1.50, "a": 1e3}}'
    tools = f"[{schema}]"
    answers = '[{"name": "f", "arguments": {"z": 1.0, "a": 1E-7, "m": 100000000000000000000}}]'
    for record in (
        {"messages": [{"role": "user", "content": "q"}], "tools": tools},
        parse(
            f'{{"messages": [{{"role": "user", "content": "q"}}], "tools": {tools}}}'
        ),
    ):
        call = parse(answers)[0]
        record["messages"].append(
            {"role": "assistant", "tool_calls": [{"function": call}]}
        )
        read = read_record(record)
        assert read.tools == f'[{{"type": "function", "function": {schema}}}]'
        assert read.messages[1].calls[0].arguments == (
            '{"z": 1.0, "a": 1E-7, "m": 100000000000000000000}'
        )


FUNCTION = '{ "name":"f","description":"d", "parameters" : {"type":"object", "n":1e3}}'
FLAT = FUNCTION.replace("{ ", '{ "type": "function", ', 1)
NESTED = f'{{"type": "function", "function": {FUNCTION}}}'


@pytest.mark.parametrize("tool", [FUNCTION, FLAT, NESTED, f'{{"function":{FUNCTION}}}'])
def test_tools_are_nested_however_a_record_has_them(tool: str) -> None:
    """One form in all readers, with the function's text as it was written."""
    said = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    talk = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    chat = "USER: u\n\n\nASSISTANT: a"
    begun = [{**said[0], "functions": f"[{tool}]"}, {**said[1], "function_calls": None}]
    records: list[dict[str, Any]] = [
        {"messages": said, "tools": f" [ {tool} ] "},
        {"messages": said, "tools": tool},
        {"messages": said, "tools": json.dumps([tool])},
        {"messages": said, "tools": [tool]},
        {"messages": said, "functions": f"[{tool}]"},
        {"messages": begun},
        {"messages": json.dumps(said), "available_tools": f"[{tool}]"},
        {"conversations": talk, "tools": f"[{tool}]"},
        {"conversations": talk, "system": f"You may call [{tool}]"},
        {"system": f"SYSTEM: {tool}", "chat": chat},
    ]
    forms = set()
    for record in records:
        forms.add(form_of(record))
        [shown] = read_record(record).tools_for_template() or []
        assert shown == json.loads(NESTED)
        if tool is not FLAT:
            assert FUNCTION in (read_record(record).tools or "")
    assert forms == {*FORMS} - {"xlam"}  # which has no schemas
    answers = '[{"name": "f", "arguments": {}}]'
    schema = tool.replace('"n":1e3', '"properties":{}')
    record = {"query": "q", "answers": answers, "tools": f"[{schema}]"}
    [shown] = read_record(record).tools_for_template() or []
    assert list(shown) == ["type", "function"] and "type" not in shown["function"]


def test_the_end_of_text_inside_a_call_of_glaive_stays() -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    end = "<|endoftext|>"
    chat = (
        f"USER: q\n\n\nASSISTANT: The mark ends. {end} <functioncall> "
        f'{{"name": "f", "arguments": \'{{"a": "see {end} here"}}\'}} {end}'
    )
    read = read_record({"system": f"SYSTEM: {json.dumps(tool)}", "chat": chat})
    assert read.messages[1].content == "The mark ends."
    assert read.messages[1].calls[0].arguments == f'{{"a": "see {end} here"}}'


@pytest.mark.parametrize("words", ["a {} b", "a {}\n{} b", "a {} <functioncall>"])
def test_two_answers_of_glaive_in_one_turn_are_refused(words: str) -> None:
    end = "<|endoftext|>"
    said = words.replace("{}", end).replace("<functioncall>", f"b {end} <functioncall>")
    call = '{"name": "f", "arguments": {}}' if "<functioncall>" in words else ""
    chat = f"USER: q\n\n\nASSISTANT: {said} {call} {end}"
    with pytest.raises(RowError, match=r"ambiguous_turn: .*middle of an answer"):
        read_record({"system": 'SYSTEM: {"name": "f"}', "chat": chat})


def test_functions_of_dolci_do_not_change_in_a_conversation() -> None:
    first, other = ([{"name": name, "parameters": {}}] for name in "fg")
    turns = [
        {"role": role, "content": "u", "function_calls": None}
        for role in ("user", "assistant", "user", "assistant")
    ]
    for again in (first, json.dumps(first), [json.dumps(first[0], indent=1)]):
        turns[0]["functions"], turns[2]["functions"] = json.dumps(first), again
        tools = read_record({"messages": turns}).tools_for_template() or []
        assert [tool["function"]["name"] for tool in tools] == ["f"]
    for changed in (other, first + other, [{**first[0], "description": "x"}]):
        turns[2]["functions"] = json.dumps(changed)
        with pytest.raises(RowError, match="unparsable_tools: turn 2 offers other"):
            read_record({"messages": turns})
    del turns[0]["functions"]
    record = {"messages": turns, "tools": json.dumps(first)}
    with pytest.raises(RowError, match="unparsable_tools: turn 2 offers other"):
        read_record(record, "dolci")


def test_toucan_declares_its_tools_for_another_model() -> None:
    [case] = cases("toucan", 1)
    messages = json.loads(case.record["messages"])
    declared = "<|im_system|>tool_declare<|im_middle|>[...]<|im_end|>"
    messages.insert(0, {"role": "system", "content": declared})
    read = read_record({**case.record, "messages": json.dumps(messages)})
    assert read.messages_for_template() == case.messages


def test_toolace_keeps_what_its_system_says_beside_its_instructions() -> None:
    [case] = cases("toolace", 1)
    system = case.record["system"] + "Today is Friday."
    read = read_record({**case.record, "system": system})
    assert read.messages[0].content == "Today is Friday."


def test_a_dolci_call_may_be_json() -> None:
    tools = json.dumps([{"name": "f", "parameters": {}}])
    record = {
        "messages": [
            {"role": "system", "content": "s", "functions": tools},
            {"role": "user", "content": "u"},
            {
                "role": "assistant",
                "function_calls": '<function_calls>[{"name": "f", "arguments": {"a": 1}}]'
                "</function_calls>",
            },
        ]
    }
    assert read_record(record).messages[2].calls[0].arguments == '{"a": 1}'


@pytest.mark.parametrize("tools", [None, [], "", " ", "[]", "null"])
def test_no_tools_are_no_tools(tools: Any) -> None:
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": "u"}]
    messages.append({"role": "assistant", "content": "a"})
    read = read_record({"messages": messages, "tools": tools})
    assert read.tools is None
    assert read.messages[0].role == "system"


def test_reasoning_and_ids_go_along() -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    messages = [
        {"role": "user", "content": "u"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [call],
        },
        {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "done"},
    ]
    read = read_record({"messages": messages, "tools": [{"name": "f"}]})
    assert [m.to_record() for m in read.messages] == [
        {k: v for k, v in message.items() if v is not None} for message in messages
    ]


@pytest.mark.parametrize("text", ["[f(a=1", "[f(a=1), g(]", "[f(1)]", "[f(a=b c)]"])
def test_a_call_that_cannot_be_read_is_no_text(text: str) -> None:
    [case] = cases("toolace", 1)
    turns = [{"from": "user", "value": "u"}, {"from": "assistant", "value": text}]
    if not text.endswith("]"):
        turns[1]["value"] += "]"
    with pytest.raises(RowError, match="unparsable_call"):
        read_record({**case.record, "conversations": turns})
