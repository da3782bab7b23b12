"""What looks like something else in a record is taken for what it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import form_of, read_record

TALK = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
LIST = json.dumps([{"name": "f", "parameters": {}}])


def system(record: dict[str, Any]) -> str | None:
    first = read_record(record).messages[0]
    return first.content if first.role == "system" else None


def test_an_empty_list_in_a_prompt_is_text() -> None:
    prompt = "If there is nothing, answer with [] alone. Be brief."
    record = {"system": prompt, "conversations": TALK}
    assert form_of(record) == "sharegpt" and system(record) == prompt


@pytest.mark.parametrize("aside", ["[]", '[{"a": 1}]', "[[]]", "[1, 2]"])
def test_functions_are_found_behind_other_lists(aside: str) -> None:
    prompt = f"Return {aside} if none. Here is a list of functions: {LIST}. Be brief."
    record = {"system": prompt, "conversations": TALK}
    read = read_record(record)
    [tool] = read.tools_for_template() or []
    assert [tool["function"]] == json.loads(LIST)
    said = read.messages[0].content or ""
    assert said.startswith(f"Return {aside} if none.") and said.endswith("Be brief.")


def test_instructions_without_their_end_take_nothing_along() -> None:
    prompt = (
        f"{LIST} Should you decide to return the function call(s). Put it so. "
        "Today is Monday, answer in Catalan."
    )
    assert "answer in Catalan" in (
        system({"system": prompt, "conversations": TALK}) or ""
    )


@pytest.mark.parametrize("weight", [0, 0.5, "0"])
def test_a_turn_with_a_weight_of_its_own_is_refused(weight: Any) -> None:
    turns = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "bad", "weight": weight},
    ]
    with pytest.raises(RowError, match="turn 1 has weight"):
        read_record({"messages": turns})
    turns[1]["weight"] = 1
    assert len(read_record({"messages": turns}).messages) == 2


def test_a_parameter_called_properties_is_a_parameter() -> None:
    parameters = {
        "properties": {"type": "str", "description": "which"},
        "n": {"type": "int"},
    }
    tool = {"name": "f", "description": "d", "parameters": parameters}
    record = {
        "query": "q",
        "tools": json.dumps([tool]),
        "answers": json.dumps(
            [{"name": "f", "arguments": {"properties": "all", "n": 1}}]
        ),
    }
    read = read_record(record)
    schema = json.loads(read.tools or "")[0]["function"]["parameters"]
    assert set(schema["properties"]) == {"properties", "n"}
    assert sorted(schema["required"]) == ["n", "properties"]
    record["answers"] = json.dumps([{"name": "f", "arguments": {}}])
    with pytest.raises(RowError, match=r"missing_argument|without"):
        read_record(record)


@pytest.mark.parametrize(
    "words",
    [
        "[f(a=1",
        "[f(a=1)",
        "f(a=1)]",
        "[f(a=1]",
        "[f a=1)]",
        "[f{a=1}]",
        "[f(a=1)] is what I call",
        "Here: [f(a=1)]",
        "[f(a=1), f(a=2]",
        "[f(",
        "[g h(a=1",
        '[{"name": "f", "arguments": {"a": 1}',
        '[f: {"a": 1}]',
        "[f - a=1]",
        "[f, g]",
        '[f a: "1"]',
        "(f())",
        "Sure.\nf (a=1)",
        'Sure: f {"a": 1}',
        '{"f": {"a": 1}}',
        '["f", {"a": 1}]',
        'f: {"a": 1}',
    ],
)
def test_a_broken_call_is_no_answer_in_words(words: str) -> None:
    turns = [TALK[0], {"from": "gpt", "value": words}]
    with pytest.raises(RowError, match=r"unparsable_call|unknown_function"):
        read_record({"system": LIST, "conversations": turns})


@pytest.mark.parametrize(
    "words",
    [
        "I could use f for it, if you tell me a.",
        "[1] says so, and f(x) is a function of x.",
        "The parameter a is missing (f needs it).",
        "[note] see below",
    ],
)
def test_words_about_functions_are_words(words: str) -> None:
    turns = [TALK[0], {"from": "gpt", "value": words}]
    read = read_record({"system": LIST, "conversations": turns})
    assert read.messages[-1].content == words and not read.messages[-1].calls


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("get", "I checked the target (Paris) and found two hotels (both near it)"),
        ("list", "Here is your checklist (in order): passport, tickets (printed)"),
        ("list", "[list (in order)] passport, tickets (printed)"),
        ("search", "Here are the [search results] that you wanted."),
        ("search", "[search results] Two hotels [1]"),
        ("search", "The search (in Paris) found nothing (yet)"),
        ("search", "search (in Paris) found nothing (yet)"),
        ("Get Weather", "Get Weather (by city) needs a city (for example Rome)"),
        ("get_weather", "get_weather(city) needs a city. Say one (for example Rome)"),
        ("get_weather", "It is get_weather(city) that lacks it {city} [a city]"),
        ("get", "[Note (see below)] the function needs [a city]"),
        ("get", '{"name": "Rome", "population": 3}'),
        ("get", '[{"name": "Rome"}, {"name": "Oslo"}]'),
        ("get", '{"function": "linear", "slope": 2}'),
    ],
)
def test_a_name_of_a_function_is_a_word_too(name: str, words: str) -> None:
    listed = json.dumps([{"name": name, "parameters": {}}])
    turns = [TALK[0], {"from": "gpt", "value": words}]
    read = read_record({"system": listed, "conversations": turns})
    assert read.messages[-1].content == words and not read.messages[-1].calls


@pytest.mark.parametrize(
    "words",
    [
        "[Get It(1)]",
        "[Get It (a=1)]",
        "[Get It('x')",
        "Get It(1)]",
        "Get It {'a': 1}",
        "Here: [Get It (a=1)]",
        "[g(1), h(2)]",
        "[g h(1)]",
        '{"name": "g", "arguments": {"a": 1}}',
        '{"name": "Get It", "a": 1}',
    ],
)
def test_a_call_of_any_function_is_no_answer_in_words(words: str) -> None:
    listed = json.dumps([{"name": "Get It", "parameters": {}}])
    turns = [TALK[0], {"from": "gpt", "value": words}]
    try:
        read = read_record({"system": listed, "conversations": turns})
    except RowError as error:
        assert error.reason in ("unparsable_call", "unknown_function")
    else:
        assert read.messages[-1].calls


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ('Wait. <TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>', True),
        ('<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL> Done.', False),
        (
            '<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL> and '
            '<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>',
            False,
        ),
    ],
)
def test_words_behind_a_call_are_not_moved_before_it(words: str, fits: bool) -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": words}]
    record = {"tools": ['{"name": "f", "parameters": {}}'], "messages": turns}
    if fits:
        assert read_record(record).messages[1].content == "Wait."
        return
    with pytest.raises(RowError, match="words_after_call"):
        read_record(record)


END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("chat", "turns"),
    [
        (f"USER: u\n\n\nASSISTANT: a {END}\n\n\nUSER: v\n\n\nASSISTANT: b {END}", 4),
        ("USER: u\nASSISTANT: a\nUSER: v\nASSISTANT: b", 4),
        # A line of the user's, of the assistant's, and one that is not at the beginning.
        (f"USER: a play:\nASSISTANT: hello\n\n\nASSISTANT: fine {END}", None),
        (
            f"USER: u\n\n\nASSISTANT: as in\n\nUSER: x\n\nASSISTANT: y {END}\n\n\n"
            f"USER: v\n\n\nASSISTANT: b {END}",
            None,
        ),
        (
            f"USER: u\n\n\nASSISTANT: a script:\n\n  USER: x\n\n\nASSISTANT: y {END}",
            None,
        ),
        (
            f"USER: an example\n\n\nASSISTANT: Sure:\n\nUSER: hi\n\nASSISTANT: yes {END}",
            None,
        ),
        (f"USER: what does USER: mean?\n\n\nASSISTANT: a {END}", 2),
    ],
)
def test_lines_that_begin_as_a_turn(chat: str, turns: int | None) -> None:
    record = {"system": "", "chat": chat}
    if turns is None:
        with pytest.raises(RowError, match=r"ambiguous_turn"):
            read_record(record)
    else:
        assert len(read_record(record).messages) == turns
