"""Where tools are offered no call is trained as words, in whatever form it is written."""

from __future__ import annotations

from typing import Any

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import read_record

TOOLS = [
    {
        "name": name,
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
    }
    for name in ("get_weather", "f", "Get Time", "search")
]
CALLS = [
    # Tags, with what their readers know and with what they do not.
    "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>",
    "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x</arg_value>\n</tool_call>",
    "<tool_call>other\n<arg_key>a</arg_key>\n<arg_value>x</arg_value>\n</tool_call>",
    '<tool_call>\nf(a="x")\n</tool_call>',
    '<tool_call>other(a="x")</tool_call>',
    '<tool_call>\n"f", {"a": "x"}\n</tool_call>',
    "<tool_call>\nname: f\narguments:\n  a: x\n</tool_call>",
    "<tool_call>\nthe weather in Girona\n</tool_call>",
    "<tool_call>the weather in Girona</tool_call>",
    '<tool_call>{"name": "f", "arguments": {"a": "x"}',
    'Let me see.\n<tool_call>\n{"name": "f", "arg',
    '<function=f>{"a": "x"}</function>',
    "<function=f></function>",
    '<function=other>{"a": "x"}',
    '<|python_tag|>{"name": "f", "parameters": {"a": "x"}}',
    '<|python_tag|>f.call(a="x")',
    '[TOOL_CALLS]f[ARGS]{"a": "x"}',
    '[TOOL_CALLS] f {"a": "x"}',
    '[TOOL_CALLS]f[CALL_ID]abc[ARGS]{"a": "x"}',
    '<function_calls>\nf(a="x")\n</function_calls>',
    '<function_calls><invoke name="f"><parameter name="a">x</parameter></invoke>',
    '<functioncall> {"name": "f", "arguments": \'{"a": "x"}\'}',
    "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>",
    '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "x"}',
    '<tools>\n{"name": "f", "arguments": {"a": "x"}}\n</tools>',
    # JSON and Python's dictionaries.
    '{"name": "f", "arguments": {"a": "x"}}\n{"name": "f", "arguments": {"a": "y"}}',
    '{"name": "f", "parameters": {"a": "x"}}; {"name": "f", "parameters": {"a": "y"}}',
    '{"name": "other", "arguments": {}}\n{"name": "other", "arguments": {}}',
    'Sure.\n{"name": "f", "arguments": {"a": "x"}}',
    'I do it: [{"name": "f", "arguments": "{}"}] and tell you.',
    "{'name': 'f', 'arguments': {'a': 'x'}}",
    "[{'arguments': {'a': 'x'}, 'name': 'f'}]",
    '```json\n{"tool": "f", "args": {"a": "x"}}\n```',
    'First:\n```json\n{"tool": "f", "args": {"a": "x"}}\n```\nThen we see.',
    '{"function_call": {"name": "f", "arguments": {"a": "x"}}}',
    '{"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}',
    '{"name": "f", "arguments": {"a": ',
    '<think>\nI call f.\n</think>\n{"name": "f", "arguments": {}}',
    # As Python writes them.
    'f(a="x")',
    "f()",
    "[f()]",
    "[Get Time(zone='CET')]",
    "Get Time(zone='CET')",
    "get_weather(city=l'Hospitalet, days=3)",
    'f(a="x")\nf(a="(y")',
    'f(a="x"); f(a="y")',
    '[f(a="x"), get_weather(city="Girona")]',
    'f(\n  a="x",\n  b=(1, 2),\n)',
    'Sure.\nf(a="x")',
    "I look it up.\n\n[get_weather(city='Girona')]\n\nOne moment.",
    '```python\nf(a="x")\n```',
    'functions.f("x")',
]
WORDS = [
    "I could use get_weather, if you tell me the city.",
    "I would call f(a=...) but you did not say a.",
    "get_weather (the tool for it) needs a city (required).",
    "get_weather(city) wants one city; search(query) any text.",
    "I have these:\nget_time()\nget_weather(city)\nsearch(query, most=3)",
    "- get_weather(city='Girona') tells the weather\n- f(a=1) does something",
    "get_weather(city='Girona') tells the weather (in Celsius)",
    "To search is to find. f is a function of x, f(x) = 2x (so f(2) = 4).",
    "Calls stand between <tool_call> and </tool_call>.",
    "A `<tool_call>` is how calls begin, `</tool_call>` their end.",
    "I write them as\n<tool_call>\n...\n</tool_call>",
    "<tool_call>",
    "Tags: <tool_call>, <tool_response> and [TOOL_CALLS].",
    'My tool is {"name": "f", "description": "d", "parameters": {"type": "object", '
    '"properties": {"a": {"type": "string"}}}}.',
    '{"name": "Ada", "age": 3}',
    '{"paths": {"/x": {"get": {"parameters": [{"name": "id", "in": "query"}]}}}}',
    'He sent {"name": "search", "hits": 3} back.',
    "```python\nimport re\n\nm = re.search(pattern='x', string=s)\nprint(m)\n```",
    '<Tooltip>{children}</Tooltip> and <ToolCallout name="f">[1]</ToolCallout>',
    '<think>\n{"name": "f", "arguments": {}} would need a.\nf(a=1)\n</think>\nWhich a?',
    "[1] says so; see [f] and (search).",
    "It is search=1 in the address, e.g. /find?search=(x).",
]


def row(words: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": words}]
    return {"messages": turns, "tools": TOOLS}


@pytest.mark.parametrize("words", CALLS)
def test_a_call_among_words_is_refused(words: str) -> None:
    with pytest.raises(RowError, match="unparsable_call: turn 1: a call stands among"):
        read_record(row(words), "openai")


@pytest.mark.parametrize("words", WORDS)
def test_words_about_calls_stay(words: str) -> None:
    assert read_record(row(words), "openai").messages[1].content == words


def test_calls_of_functions_without_tools_are_words() -> None:
    for words in CALLS:
        talk = {"messages": row(words)["messages"]}
        assert read_record(talk, "openai").messages[1].content == words
