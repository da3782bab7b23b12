"""How a conversation is written decides how it is read, and not the columns around it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import form_of, read_record
from tests.data.chat.forms.test_hermes import CALLS, HERMES, NESTED, RESULTS, TOOL

PROMPT = HERMES.format(json.dumps([NESTED]))
TURNS = [
    {"role": "system", "content": PROMPT},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": CALLS},
    {"role": "tool", "content": RESULTS},
    {"role": "assistant", "content": "3"},
]
READ = read_record({"messages": TURNS}, "openai")


def rows(turns: list[dict[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The same turns in every container that lists of messages come in."""
    of_users = [{**t, "role": t["role"].replace("tool", "user")} for t in turns]
    told = [{**t, "role": t["role"].replace("tool", "environment")} for t in turns]
    shared = [{"from": t["role"], "value": t["content"]} for t in turns]
    listed = [json.dumps(NESTED)]
    apart = {"messages": turns[1:], "system": turns[0]["content"]}
    return {
        "list": ("openai", {"messages": turns}),
        "results of users": ("openai", {"messages": of_users}),
        "text": ("toucan", {"messages": json.dumps(turns)}),
        "text, apart": ("toucan", {**apart, "messages": json.dumps(turns[1:])}),
        "text and tools": (
            "toucan",
            {"messages": json.dumps(turns), "tools": json.dumps([TOOL])},
        ),
        "null columns": (
            "when2call",
            {"messages": turns, "chosen_response": None, "tools": None},
        ),
        "texts of tools": ("when2call", {"messages": turns, "tools": listed}),
        "a chosen answer": (
            "when2call",
            {
                "messages": turns[:-1],
                "chosen_response": turns[-1],
                "rejected_response": {"role": "assistant", "content": "4"},
                "tools": None,
            },
        ),
        "environment": ("dolci", {"messages": told}),
        "text of an environment": ("dolci", {"messages": json.dumps(told)}),
        "available tools": (
            "dolci",
            {"messages": [{**turns[0], "available_tools": [TOOL]}, *turns[1:]]},
        ),
        "sharegpt": ("sharegpt", {"conversations": shared}),
        "text of sharegpt": ("sharegpt", {"conversations": json.dumps(shared)}),
    }


@pytest.mark.parametrize("container", rows(TURNS))
def test_tags_of_hermes_are_read_in_each_container(container: str) -> None:
    form, row = rows(TURNS)[container]
    assert form_of(row) == form
    for name in (form, "auto"):
        read = read_record(row, name)
        assert read.messages == READ.messages
        assert read.tools_for_template() == [NESTED]
        assert read_record(read.to_record()) == read


@pytest.mark.parametrize("container", rows(TURNS))
def test_a_call_that_is_not_offered_is_found_in_each_container(container: str) -> None:
    turns = [*TURNS]
    turns[2] = {**turns[2], "content": CALLS.replace("'f'", "'h'")}
    with pytest.raises(RowError, match="unknown_function"):
        read_record(rows(turns)[container][1])


def test_tags_of_when2call_are_read_in_texts_too() -> None:
    tagged = '<TOOLCALL>[{"name": "f", "arguments": {"a": 1}}]</TOOLCALL>'
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": tagged}]
    for messages in (turns, json.dumps(turns)):
        read = read_record({"messages": messages, "tools": json.dumps([TOOL])})
        assert [call.name for call in read.messages[1].calls] == ["f"]


@pytest.mark.parametrize("words", ["", "Let me see."])
def test_function_calls_are_read_or_refused(words: str) -> None:
    says = {"role": "assistant", "content": words, "function_calls": "f(a=1)"}
    turns = [{"role": "user", "content": "q"}, says]
    for messages in (turns, json.dumps(turns)):
        row = {"messages": messages, "tools": json.dumps([TOOL])}
        assert form_of(row) == "dolci"
        assert read_record(row).messages[1].calls[0].arguments == '{"a": 1}'
        for form in ("openai", "toucan", "when2call"):
            with pytest.raises(RowError, match="unparsable_call: turn 1 has function"):
                read_record(row, form)
    shared = [{"from": "user", "value": "q"}, {**says, "from": "gpt", "value": "So."}]
    with pytest.raises(RowError, match="unparsable_call: turn 1 has function_calls"):
        read_record({"conversations": shared, "tools": [TOOL]})


@pytest.mark.parametrize("form", ["openai", "toucan", "when2call", "dolci"])
def test_a_declaration_for_another_model_goes_in_each_form(form: str) -> None:
    declared = f"<|im_system|>tool_declare<|im_middle|>{json.dumps([TOOL])}<|im_end|>"
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Which a?"},
    ]
    turns = [{"role": "system", "content": declared}, *said]
    row: dict[str, Any] = {"messages": turns, "tools": None}
    read = read_record(row, form)
    assert [message.role for message in read.messages] == ["user", "assistant"]
    assert read.tools_for_template() == [NESTED]


def test_two_lists_in_one_prompt_are_one_list_or_refused() -> None:
    again = f"<tools>{json.dumps([TOOL])}</tools>"
    turns = [{**TURNS[0], "content": f"{PROMPT}\n{again}"}, *TURNS[1:]]
    read = read_record({"messages": turns})
    assert read.messages == READ.messages
    other = again.replace('"f"', '"g"')
    turns[0] = {**TURNS[0], "content": f"{PROMPT}\n{other}"}
    with pytest.raises(RowError, match="unparsable_tools"):
        read_record({"messages": turns})
