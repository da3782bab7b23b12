"""Calls in what models write: vLLM's hermes rules, other forms, and what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.evaluation.function_calling import Answer, Calls, Case, calls_of
from alia_ctx.evaluation.function_calling.scores import verdict_of
from tests.hf import hermes

CALL = '{"name": "f", "arguments": {"a": 1}}'
ONE = [("f", {"a": 1})]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", ONE),
        (f"<tool_call>{CALL}</tool_call>", ONE),
        (f"I call it.\n<tool_call>\n{CALL}\n</tool_call>\nDone.", ONE),
        (f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>", ONE * 2),
        (f"<tool_call>\n{CALL}\n", ONE),  # the end of the answer closes it
        # Text in place of an object stays text: to a client it is no object either.
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            [("f", '{"a": 1}')],
        ),
        ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', [("f", "")]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", None)]),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', [("f", [1])]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "<tool_call>"}}</tool_call>',
            [("f", {"a": "<tool_call>"})],
        ),
        (f"<TOOLCALL>[{CALL}]</TOOLCALL>", ONE),
        (f"<functioncall> {CALL}", ONE),
        (f"[{CALL}, {CALL}]", ONE * 2),
        (CALL, ONE),
        ('{"name": "f", "parameters": {"a": 1}}', ONE),
        ('{"name": "f", "arguments": {"a": True}}', [("f", {"a": True})]),
        ("[f(a=1)]", ONE),
        # Mistral's, before and since calls are named before their arguments.
        (f"[TOOL_CALLS] [{CALL}, {CALL}]", ONE * 2),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]f{"a": 1}', ONE * 2),
        ('I look.[TOOL_CALLS]f[CALL_ID]abc123456[ARGS]{"a": 1}', ONE),
        # Llama 3's.
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', ONE),
        (f"<|python_tag|>{CALL}; {CALL}<|eom_id|>", ONE * 2),
        (f"{CALL}; {CALL}", ONE * 2),
        (f"{CALL}\n{CALL}", ONE * 2),
        ('<function=f>{"a": 1}</function>', ONE),
        ('<function=f>{"a": 1}<function=f>{"a": 1}', ONE * 2),
        ('{"temperature": 3}; {"temperature": 4}', []),
        ('[a.b(x="y, z", n=[1, 2])]', [("a.b", {"x": "y, z", "n": [1, 2]})]),
        ("There is no call here.", []),
        ("f(a=1) is what I would call.", []),
        ("[1] A footnote", []),
        ('{"temperature": 3}', []),
        ('{"name": "Alice", "age": 3}', []),
        ('{"name": "Alice"}', []),
        ('[{"name": "x"}, {"name": "y", "age": 3}]', []),
        ('{"person": {"name": "x", "arguments": {}}}', []),
        ('{"name": "Alice", "age": ', []),
        ('{"arguments": {"a": 1}}', []),
        ('{"name": ["f"], "arguments": {}}', []),
        ('{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}', ONE),
        ('[{"name": "f", "parameters": {"a": 1}}]', ONE),
        ("", []),
    ],
)
def test_forms(text: str, calls: list[Any]) -> None:
    found = calls_of(Answer(text))
    assert (list(found.calls), found.broken) == (calls, "")


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>',
        f"<tool_call>{CALL}</tool_call><tool_call>not JSON</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>',
        f'<tool_call>{CALL}</tool_call><tool_call>{{"name": "g"}}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        "<tool_call></tool_call>",
        '<tool_call>["f"]</tool_call>',
        "<tool_call>",
        "<tool_call>" + "[" * 100_000,
        '[f(a="1)]',
        '{"name": "f", "arguments": "not JSON"}',
        '{"name": "f", "arguments": {"a": ',
        f'[{CALL}, {{"name": "g"}}]',
    ],
)
def test_one_broken_call_and_there_is_none(text: str) -> None:
    found = calls_of(Answer(text))
    assert not found.calls
    assert found.broken


def test_calls_that_a_server_found() -> None:
    answer = Answer("text", (("f", '{"a": 1}'), ("g", " {}\n")))
    assert list(calls_of(answer).calls) == [*ONE, ("g", {})]
    for arguments in ("", " ", "{", "{'a': 1}", "a=1"):
        found = calls_of(Answer("", (("f", '{"a": 1}'), ("g", arguments))))
        assert not found.calls
        assert found.broken


TAGGED = st.lists(
    st.sampled_from(
        [
            *("<tool_call>", "</tool_call>", "\n", " ", "words", "{", "}", '"', "null"),
            *(CALL, '{"name": "f"}', '{"name": "g", "arguments": "text"}'),
            *('{"name": "f", "arguments": {"a": "<tool_call>"}}', '{"arguments": {}}'),
        ]
    ),
    max_size=8,
).map(lambda parts: "<tool_call>" + "".join(parts))


@given(TAGGED)
@settings(max_examples=500)
def test_tagged_text_is_read_as_vllm_does(text: str) -> None:
    assert list(calls_of(Answer(text)).calls) == hermes.read(text)[1]


def test_arguments_that_are_no_object_are_no_call_to_the_benchmark() -> None:
    """Neither right nor, where none is wanted, wrong."""
    for arguments in ('"{}"', '""', "null", "[1]", "3"):
        text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
        for answer in (Answer(text), Answer("", (("f", arguments),))):
            assert calls_of(answer).calls
            kept = calls_of(answer).with_objects()
            assert not kept.calls
            assert "f: arguments are no object" in kept.broken
    message = {"role": "user", "content": "?"}
    for category, right in (("irrelevance", True), ("live_relevance", False)):
        case = Case("x", category, (message,), (), None)
        assert verdict_of(case, Answer(text), "underscore").right == right
    both = Calls((("f", {}), ("g", [])))
    assert not both.with_objects().calls


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    calls_of(Answer(text))
    calls_of(Answer(f"<tool_call>{text}"))
    calls_of(Answer(f"[f(a={text})]"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), VALUES))))
def test_what_is_written_is_read(calls: list[Any]) -> None:
    """Text that holds the closing tag itself is cut there, as vLLM does."""
    written = [json.dumps({"name": n, "arguments": a}) for n, a in calls]
    text = "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in written)
    if text.count("</tool_call>") == len(calls):
        assert list(calls_of(Answer(text)).calls) == calls


def test_an_answer_goes_to_json_and_back() -> None:
    answer = Answer("t", (("f", "{}"),), "why", 3, True)
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer


def test_whatever_depth_an_answer_has_it_is_read_or_broken() -> None:
    """What Python just reads it may not be able to write; the answer is kept, and an error
    would come back whenever it is scored.
    """
    kept = set[bool]()
    for depth in range(700, 1_010):
        nested = f"{'[' * depth}{']' * depth}"
        call = f'{{"name": "f", "arguments": {{"a": {nested}}}}}'
        for text in (call, f"<TOOLCALL>[{call}]</TOOLCALL>", f"[f(a={nested})]"):
            found = calls_of(Answer(text)).with_objects()
            assert (
                found.calls
                or "nested too deeply" in found.broken
                or "no value" in (found.broken)
            )
            kept.add(bool(found.calls))
    assert kept == {True, False}
