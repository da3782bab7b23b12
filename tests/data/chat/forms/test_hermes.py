"""Hermes' tags are read as tools, calls and results; others' are refused by reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import form_of, read_record

TOOL = {
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
NESTED = {"type": "function", "function": TOOL}
HERMES = (
    "You are a function calling AI model. You are provided with function signatures within "
    "<tools> </tools> XML tags. You may call one or more functions to assist with the user "
    "query. Don't make assumptions about what values to plug into functions.\n"
    "Here are the available tools:\n<tools>\n{}\n</tools>\n"
    "Use the following pydantic model json schema for each tool call you will make: "
    '{{"title": "FunctionCall"}}\nFor each function call return a json object with function '
    "name and arguments within <tool_call></tool_call> XML tags as follows:\n<tool_call>\n"
    "{{tool_call}}\n</tool_call>\nToday is Friday."
)
CALLS = (
    "Let me see.\n<tool_call>\n{'arguments': {'a': 1}, 'name': 'f'}\n</tool_call>\n"
    '<tool_call>\n{"name": "f", "arguments": {"a": 2}}\n</tool_call>'
)
RESULTS = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"


def record(system: str, *values: str, **beside: Any) -> dict[str, Any]:
    speakers = ("system", "human", "gpt", "tool", "gpt")
    turns = zip(speakers, (system, *values), strict=False)
    return {
        "conversations": [{"from": who, "value": value} for who, value in turns],
        **beside,
    }


@pytest.mark.parametrize(
    "listed",
    [
        json.dumps([NESTED]),
        json.dumps(TOOL),
        f"{json.dumps(NESTED)}\n",
        repr([NESTED]),
    ],
)
@pytest.mark.parametrize("beside", [{}, {"tools": json.dumps([TOOL])}])
def test_tags_are_tools_calls_and_results(listed: str, beside: dict[str, Any]) -> None:
    row = record(HERMES.format(listed), "q", CALLS, RESULTS, "3", **beside)
    messages = [
        {"role": "system", "content": "Today is Friday."},
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"a": n}}}
                for n in (1, 2)
            ],
        },
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "3"},
    ]
    names = {"human": "user", "gpt": "assistant"}
    alike = {
        "messages": [
            {"role": names.get(t["from"], t["from"]), "content": t["value"]}
            for t in row["conversations"]
        ],
        **beside,
    }
    system, *rest = row["conversations"]
    apart = {"system": system["value"], "conversations": rest, **beside}
    for one in (row, alike, apart):
        read = read_record(one)
        assert read.messages_for_template() == messages
        assert read.tools_for_template() == [NESTED]
    assert form_of(row) == form_of(apart) == "sharegpt"


def test_several_tools_one_a_line_and_qwens_prompt() -> None:
    other = {**NESTED, "function": {**TOOL, "name": "g"}}
    listed = f"{json.dumps(NESTED)}\n{json.dumps(other)}"
    prompt = (
        "Be brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user "
        "query.\n\nYou are provided with function signatures within <tools></tools> XML tags:"
        f"\n<tools>\n{listed}\n</tools>\n\nFor each function call, return a json object with "
        "function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )
    read = read_record(record(prompt, "q", CALLS))
    assert read.tools_for_template() == [NESTED, other]
    assert read.messages[0].content == "Be brief."


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("q", CALLS + " Done."), "words_after_call"),
        (("q", CALLS.replace("</tool_call>", "")), "unparsable_call"),
        (("q", "<tool_call>[]</tool_call>"), "unparsable_call"),
        (("q", CALLS.replace("'f'", "'h'")), "unknown_function"),
        (("q", CALLS, RESULTS + " and more", "3"), "unparsable_messages"),
    ],
)
def test_broken_tags(values: tuple[str, ...], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read_record(record(HERMES.format(json.dumps([TOOL])), *values))


def test_broken_and_other_tools() -> None:
    with pytest.raises(RowError, match="unparsable_tools: <tools>"):
        read_record(record(HERMES.format("[{broken"), "q", "a"))
    other = json.dumps([{**TOOL, "name": "g"}])
    with pytest.raises(RowError, match="unparsable_tools: the tools of the system"):
        read_record(record(HERMES.format(json.dumps([TOOL])), "q", "a", tools=other))


@pytest.mark.parametrize(
    "words",
    [
        'Sure <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>',
        'Sure: [TOOL_CALLS] [{"name": "f"}]',
        '[{"name": "f", "arguments": {"a": 1}}]',
        '{"name": "f", "parameters": {"a": 1}}',
        '```json\n[{"function": {"name": "f", "arguments": "{}"}}]\n```',
        "[f(a=1)]",
    ],
)
def test_calls_as_words_are_refused_where_tools_are_offered(words: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": words}]
    with pytest.raises(RowError, match="unparsable_call: turn 1: a call stands among"):
        read_record({"messages": turns, "tools": [TOOL]})
    assert read_record({"messages": turns}).messages[1].content == words


@pytest.mark.parametrize(
    "words",
    ['{"name": "Ada", "age": 3}', "[1, 2]", "[]", "[see f(a)] it", "<tool_call>"],
)
def test_other_json_is_an_answer(words: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": words}]
    assert (
        read_record({"messages": turns, "tools": [TOOL]}).messages[1].content == words
    )


@pytest.mark.parametrize(
    ("who", "said"),
    [
        *(("gpt", {key: value}) for key in ("train", "loss") for value in (False, 0)),
        *(("gpt", said) for said in ({"train": "no"}, {"mask": True}, {"mask": 0})),
        ("human", {"train": True}),
        ("human", {"loss": 1}),
    ],
)
def test_turns_that_choose_what_is_trained(who: str, said: dict[str, Any]) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    place = 1 if who == "gpt" else 0
    turns[place] = {**turns[place], **said}
    with pytest.raises(RowError, match=f"weighted_turn: turn {place}"):
        read_record({"conversations": turns})
    names = {"human": "user", "gpt": "assistant"}
    messages = [
        {**turn, "role": names[turn["from"]], "content": turn["value"]}
        for turn in turns
    ]
    with pytest.raises(RowError, match=f"weighted_turn: turn {place}"):
        read_record({"messages": messages})


def test_turns_that_say_what_is_done_anyway() -> None:
    turns = [
        {"from": "human", "value": "q", "train": False, "loss": 0, "mask": 1},
        {"from": "gpt", "value": "a", "train": True, "loss": 1, "weight": 1},
    ]
    assert len(read_record({"conversations": turns}).messages) == 2


@pytest.mark.parametrize(
    "example", ["{tools}", "[hammer, saw]", '[{"sku": 3}]', '{"name": "x"}']
)
def test_what_stands_in_tags_beside_the_tools_of_a_column_is_words(
    example: str,
) -> None:
    system = f"Inventory: <tools>{example}</tools>."
    row = record(system, "q", "a", tools=json.dumps([TOOL]))
    conversation = read_record(row)
    assert conversation.messages[0].content == system
    assert json.loads(conversation.tools or "[]")


def test_an_example_beside_the_list_does_not_take_it_away() -> None:
    system = HERMES.format(json.dumps([NESTED])) + " As <tools>{names}</tools>."
    conversation = read_record(record(system, "q", CALLS, RESULTS, "3"))
    assert [call.name for m in conversation.messages for call in m.calls] == ["f", "f"]
    with pytest.raises(RowError, match="holds none"):
        read_record(record(HERMES.format("[{broken"), "q", "a"))


@pytest.mark.parametrize("arguments, same", [({"a": 1}, True), ({"a": 2}, False)])
def test_a_call_that_is_given_twice_is_one(
    arguments: dict[str, Any], same: bool
) -> None:
    call = {"name": "f", "arguments": json.dumps(arguments)}
    tagged = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    row = {
        "messages": [
            {"role": "system", "content": HERMES.format(json.dumps([NESTED]))},
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": tagged,
                "tool_calls": [{"type": "function", "function": call}],
            },
        ]
    }
    if same:
        assert [c.name for c in read_record(row).messages[-1].calls] == ["f"]
    else:
        with pytest.raises(RowError, match="others than its tool_calls"):
            read_record(row)
