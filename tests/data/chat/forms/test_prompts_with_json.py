"""JSON of named things in a system prompt is the prompt's, but for functions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import Conversation, RowError
from alia_ctx.data.chat.forms import form_of, read_record

DEFINED = {"name": "f", "description": "d", "parameters": {"type": "dict"}}
OF_XLAM = {"name": "f", "parameters": {"city": {"type": "str"}}}
BARE = {"name": "now", "description": "the time"}
INTRODUCED = "Here is a list of functions in JSON format that you can invoke:\n"
ACCESS = (
    "You are a helpful assistant with access to the following functions. Use them if "
    "required -\n"
)
OTHERS = [
    [{"name": "Blue lamp", "price": 30}, {"name": "Chair", "price": 80}],
    [{"name": "Ann"}],
    [{"name": "Chair", "description": "of wood", "parameters": {"height": 3}}],
    [{"name": "Chair", "description": "of wood", "parameters": ["height"]}],
    [{"function": "heating", "unit": "C"}, {"function": "light"}],
    [{"name": "Ann", "function": {"title": "clerk"}}],
]


def talk(system: str, answer: str = "80 euros.") -> dict[str, Any]:
    turns = [{"from": "human", "value": "u"}, {"from": "gpt", "value": answer}]
    return {"system": system, "conversations": turns}


def chat(system: str, answer: str = "80 euros.") -> dict[str, Any]:
    turns = f"USER: u\n\n\nASSISTANT: {answer} <|endoftext|>\n\n\n"
    return {"system": f"SYSTEM: {system}", "chat": turns}


def offered(read: Conversation) -> list[str]:
    return [tool["function"]["name"] for tool in read.tools_for_template() or []]


def prompt_of(read: Conversation) -> str | None:
    first = read.messages[0]
    return first.content if first.role == "system" else None


@pytest.mark.parametrize("things", OTHERS)
def test_named_things_stay_in_the_prompt(things: list[Any]) -> None:
    objects = " ".join(map(json.dumps, things))
    for record, form, listed in (
        (talk, "sharegpt", json.dumps(things)),
        (talk, "sharegpt", json.dumps({"products": things})),
        (chat, "glaive", objects),
        (chat, "glaive", json.dumps(things)),
        (chat, "glaive", json.dumps({"products": things})),
    ):
        prompt = f"You sell. We have: {listed}. Answer shortly."
        # As an answer that links what is listed, or has it as JSON.
        for answer in ("80 euros.", "[Chair](a.html) (80)", json.dumps(things)):
            made = record(prompt, answer)
            assert form_of(made) == form
            read = read_record(made)
            assert prompt_of(read) == prompt and read.tools is None
            assert read.messages[-1].content == answer
    assert prompt_of(read_record(talk(prompt), "toolace")) == prompt


@pytest.mark.parametrize("things", OTHERS[:-1])
def test_functions_are_found_behind_named_things(things: list[Any]) -> None:
    first = f"We have: {json.dumps(things)}."
    for words in (INTRODUCED, "You may call "):
        for tools in ([DEFINED], [OF_XLAM], [DEFINED, BARE]):
            read = read_record(talk(f"{first}\n{words}{json.dumps(tools)}"))
            assert offered(read) == [tool["name"] for tool in tools]
            assert (prompt_of(read) or "").startswith(first)
    read = read_record(
        chat(f"{first} {ACCESS}{json.dumps(BARE)}\n{json.dumps(DEFINED)}")
    )
    assert offered(read) == ["now", "f"] and prompt_of(read) == first
    read = read_record(chat(f"{first}\n{json.dumps(DEFINED)}"))
    assert offered(read) == ["f"] and prompt_of(read) == first


def test_functions_without_parameters_are_some_where_a_set_or_a_call_says_so() -> None:
    for record in (
        talk(INTRODUCED + json.dumps([BARE])),
        talk(f"You have: {json.dumps([BARE])}", "[now()]"),
        chat(ACCESS + json.dumps(BARE)),
        chat(
            f"You have: {json.dumps(BARE)}",
            '<functioncall> {"name": "now", "arguments": \'{}\'}',
        ),
    ):
        assert offered(read_record(record)) == ["now"]
    called = f'<functioncall> {{"name": "f", "arguments": \'{json.dumps(BARE)}\'}}'
    apart = f"{json.dumps(BARE)} is it."
    read = read_record(chat(f"{apart} {json.dumps(DEFINED)}", called))
    assert offered(read) == ["f"] and prompt_of(read) == apart
    for both in (
        (BARE, DEFINED),
        (DEFINED, BARE),
    ):  # one after another they are one list
        for text in (" ".join(map(json.dumps, both)), json.dumps(both)):
            read = read_record(chat(f"You have: {text}"))
            assert offered(read) == [tool["name"] for tool in both]
            assert prompt_of(read) == "You have:"
    around = "You have: " + json.dumps({"functions": [DEFINED]})
    assert prompt_of(read_record(chat(around))) == around


def test_braces_in_a_glaive_prompt_are_words_and_broken_functions_are_none() -> None:
    prompt = "Answer as {name}: {value}."
    assert prompt_of(read_record(chat(prompt))) == prompt
    assert offered(read_record(chat(f"{prompt} {json.dumps(DEFINED)}"))) == ["f"]
    for broken in (ACCESS + '{"name": "f"', json.dumps(DEFINED)[:-1]):
        with pytest.raises(RowError, match="unparsable_tools"):
            read_record(chat(f"{prompt} {broken}"))


@pytest.mark.parametrize("things", OTHERS[:3])
def test_tags_called_tools_hold_functions_or_words(things: list[Any]) -> None:
    prompt = f"You sell. <tools>{json.dumps(things)}</tools>"
    read = read_record(talk(prompt))
    assert prompt_of(read) == prompt and read.tools is None
    explained = f"You are a function calling AI model. {prompt}"
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    for record in (
        talk(explained.replace(json.dumps(things), json.dumps([BARE]))),
        talk(prompt.replace(json.dumps(things), json.dumps([BARE])), call),
        talk(prompt.replace(json.dumps(things), json.dumps([BARE, DEFINED]))),
    ):
        assert offered(read_record(record))[0] == "now"
