"""Of a system prompt goes what its data set wrote, and not what its user did."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import read_record

TOOL = {
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
NESTED = {"type": "function", "function": TOOL}
LIST = json.dumps([TOOL])
OWN = "You work for ACME, and answer in Catalan."
SCHEMA = json.dumps(
    {
        "title": "FunctionCall",
        "type": "object",
        "properties": {"arguments": {"title": "Arguments", "type": "object"}},
        "required": ["arguments", "name"],
    }
)
EXAMPLE = (
    '<tool_call>\n{"arguments": <args-dict>, "name": <function-name>}\n</tool_call>'
)
# Hermes 2 Pro's card, its data set in two wordings, and Qwen's template; sentence by sentence.
HERMES = {
    "card": [
        "You are a function calling AI model.",
        "You are provided with function signatures within <tools> </tools> XML tags.",
        "You may call one or more functions to assist with the user query.",
        "Don't make assumptions about what values to plug into functions.",
        "Here are the available tools:",
        f"<tools>\n{LIST}\n</tools>",
        f"Use the following pydantic model json schema for each tool call you will make: {SCHEMA}",
        "For each function call return a json object with function name and arguments within "
        f"<tool_call></tool_call> XML tags as follows:\n{EXAMPLE}",
    ],
    "set": [
        "You are a function calling AI model.",
        "You are provided with function signatures within <tools> </tools> XML tags.",
        "You may call one or more functions to assist with the user query.",
        "Don't make assumptions about what values to plug into functions.",
        f"<tools>\n{LIST}\n</tools>",
        "For each function call return a JSON object, with the following pydantic model json "
        f"schema for each:\n{SCHEMA}",
        "Each function call should be enclosed within <tool_call> </tool_call> XML tags.",
        "Example:\n<tool_call>\n{'name': <function-name>, 'arguments': <args-dict>}\n</tool_call>",
    ],
    "wrapped": [
        "You are a function calling AI\nmodel.",
        "You are provided with function signatures\nwithin <tools></tools> XML tags.",
        f"<tools>\n{LIST}\n</tools>",
        "For each function call return a json object with function name and arguments within "
        f"<tool_call> </tool_call> tags with the following schema:\n{EXAMPLE}",
    ],
    "qwen": [
        "# Tools\n\nYou may call one or more functions to assist with the user query.",
        "\n\nYou are provided with function signatures within <tools></tools> XML tags:",
        f"\n<tools>\n{LIST}\n</tools>\n\n",
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
        '"arguments": <args-json-object>}\n</tool_call>',
    ],
}
TOOLACE = [
    "You are an expert in composing functions.",
    "You are given a question and a set of possible functions. \n",
    "Based on the question, you will need to make one or more function/tool calls to achieve "
    "the purpose. \n",
    "If none of the function can be used, point it out.",
    "If the given question lacks the parameters required by the function,\nalso point it out.",
    "You should only return the function call in tools call sections.\n",
    "Here is a list of functions in JSON format that you can invoke:\n",
    f"{LIST}. \n",
    "Should you decide to return the function call(s). \n",
    "Put it in the format of [func1(params_name=params_value, params_name2=params_value2...), "
    "func2(params)]\n\n",
    "NO other text MUST be included. \n",
]


def system(prompt: str, form: str) -> str | None:
    talk: dict[str, Any] = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "Which a?"},
        ]
    }
    read = read_record({**talk, "system": prompt}, form)
    assert read.tools_for_template() == [NESTED]
    first = read.messages[0]
    return first.content if first.role == "system" else None


@pytest.mark.parametrize("name", HERMES)
def test_hermes_own_words_stay_wherever_they_stand(name: str) -> None:
    parts = HERMES[name]
    assert system(" ".join(parts), "sharegpt") is None
    for place in range(len(parts) + 1):
        prompt = " ".join([*parts[:place], OWN, *parts[place:]])
        assert OWN in (system(prompt, "sharegpt") or ""), place


def test_toolace_own_words_stay_wherever_they_stand() -> None:
    assert system("".join(TOOLACE), "toolace") is None
    for place in range(len(TOOLACE) + 1):
        prompt = " ".join([*TOOLACE[:place], OWN, *TOOLACE[place:]])
        assert system(prompt, "toolace") == OWN, place


def test_words_that_only_resemble_instructions_stay() -> None:
    tools = f"<tools>{LIST}</tools>"
    for own in (
        "You are a function calling AI model for ACME.",
        "Answer with <tool_call>...</tool_call> and nothing else.",
        "Use the following pydantic model: {}. Return </tool_call>.",
    ):
        assert system(f"{tools}\n{own}", "sharegpt") == own
    for own in (
        "Give the day. Put it in the format of [YYYY-MM-DD].",
        "Should you decide to return the function call(s), ask back first.",
    ):
        assert system(f"{LIST}\n{own}", "toolace") == own


def test_what_stands_behind_toucans_declaration_stays() -> None:
    start, stop = "<|im_system|>tool_declare<|im_middle|>", "<|im_end|>"
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Which a?"},
    ]

    def read(declared: str, **beside: Any) -> Any:
        turns = [{"role": "system", "content": f"{start}{declared}{stop}{OWN}"}, *said]
        return read_record({"messages": json.dumps(turns), **beside})

    for beside in ({}, {"tools": LIST}):
        kept = read(LIST, **beside)
        assert kept.messages[0].content == OWN
        assert kept.tools_for_template() == [NESTED]
    other = json.dumps([{**TOOL, "parameters": {}}])
    with pytest.raises(RowError, match="unparsable_tools: the declaration lists other"):
        read(LIST, tools=other)
    with pytest.raises(
        RowError, match="unparsable_tools: the declaration of tools is no"
    ):
        read("namespace functions {}")
