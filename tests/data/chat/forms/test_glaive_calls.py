"""A call of glaive's form is the same call in training data and in a model's answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import read_record
from alia_ctx.evaluation.function_calling import Answer, calls_of

SYSTEM = 'SYSTEM: {"name": "f", "description": "d", "parameters": {"type": "object"}}'
VALUES = [
    "it's",
    'say "hi"',
    "two\nlines",
    "C:\\new",
    "\\n",
    "a', \"b",
    "'}",
    "é\t\\u0041",
]


def trained(text: str) -> list[Any] | None:
    chat = f"USER: q\n\n\nASSISTANT: {text} <|endoftext|>\n\n\n"
    try:
        calls = read_record({"system": SYSTEM, "chat": chat}).messages[-1].calls
    except RowError as error:
        assert error.reason == "unparsable_call"
        return None
    return [(call.name, json.loads(call.arguments)) for call in calls]


def answered(text: str) -> list[Any] | None:
    found = calls_of(Answer(text))
    return None if found.broken else [*found.calls]


def written(arguments: dict[str, Any], form: str, *, quoted: bool = False) -> str:
    inside = json.dumps(arguments)
    inside = inside.replace("'", "\\'") if quoted else inside
    return "<functioncall> " + form.replace("ARGUMENTS", inside)


FORMS = [
    '{"name": "f", "arguments": \'ARGUMENTS\'}',
    '{"arguments": \'ARGUMENTS\', "name": "f"}',
    '{"name": "f", "parameters": \'\nARGUMENTS\n\'}',
    '{"id": "1", "name": "f", "arguments" : \'ARGUMENTS\' }',
    '[{"name": "f", "arguments": \'ARGUMENTS\'}]',
    '{"name": "f", "arguments": \'ARGUMENTS\',}',
    '{"name": "f", "arguments": ARGUMENTS}',
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", VALUES)
def test_values_are_read_as_they_were_written(form: str, value: str) -> None:
    arguments = {"a": value, "b": [value, {"c": 1.5, "d": True, "e": None}]}
    for quoted in {False, "'ARG" in form}:
        text = written(arguments, form, quoted=quoted)
        for call in (text, f"{text} <|endoftext|>", f"{text} </functioncall>"):
            assert trained(call) == answered(call) == [("f", arguments)]
    twice = f"{text} {text}"
    assert trained(twice) == answered(twice) == [("f", arguments)] * 2


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="a'\\\"{}:, n\n", max_size=12), st.sampled_from(FORMS))
def test_any_text_is_read_alike(value: str, form: str) -> None:
    text = written({"a": value}, form)
    assert trained(text) == answered(text) == [("f", {"a": value})]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ('{"name": "f", "arguments": \'\'}', {}),
        ('{"name": "f", "arguments": \'{}\'}', {}),
        ('{"name": "f"}', {}),
        ("{'name': 'f', 'arguments': {'a': 'C:\\\\new'}}", {"a": "C:\\new"}),
        ('{"name": "f", "arguments": \'{\'a\': "it"}\'}', {"a": "it"}),
        ('{"name": "f", "arguments": \'{"a": 1\'}', None),
        ('{"name": "f", "arguments": \'[1]\'}', None),
        ('{"name": "f", "arguments": \'{"a": 1}\'} and more', None),
        ("{}", None),
        ("", None),
    ],
)
def test_other_spellings_are_read_alike(call: str, arguments: Any) -> None:
    text = f"<functioncall> {call}"
    calls = None if arguments is None else [("f", arguments)]
    assert trained(text) == answered(text) == calls


def test_an_answer_of_many_quotes_is_read_once() -> None:
    """As a model that goes in circles writes; parsed at each quote it would take minutes."""
    assert (
        answered('<functioncall> {"name": "f", "arguments": \'' + "x', '" * 40_000)
        is None
    )


@pytest.mark.parametrize("between", [", ", "; ", "\n", " ,\n"])
@pytest.mark.parametrize("value", ["1", "true"])
def test_objects_one_after_another_are_as_many_calls(between: str, value: str) -> None:
    one = f'{{"name": "f", "parameters": {{"a": {value}}}}}'
    found = calls_of(Answer(between.join([one, one])))
    assert not found.broken and len(found.calls) == 2
