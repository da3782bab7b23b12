"""Calls of models that reason: those that they only consider are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.evaluation.function_calling import (
    Answer,
    Case,
    calls_of,
    read_cases,
)
from alia_ctx.evaluation.function_calling.scores import verdict_of
from alia_ctx.workflow.call_generation import TransformersModel
from alia_ctx.workflow.call_server import _completion
from alia_ctx.workflow.call_writer import CallSettings
from tests.evaluation.function_calling.small_suite import write_suite
from tests.evaluation.function_calling.test_templates_that_leave_out import (
    SAID,
    TOOLS,
    model_with,
)


def call(number: int) -> str:
    return f'<tool_call>\n{{"name": "f", "arguments": {{"a": {number}}}}}\n</tool_call>'


def text_call(text: str) -> str:
    return f'{{"name": "f", "arguments": {{"t": {json.dumps(text)}}}}}'


TWO = [("f", {"a": 2})]
FORMS = [
    call(2),
    "[f(a=2)]",
    '{"name": "f", "parameters": {"a": 2}}',
    '[{"name": "f", "arguments": {"a": 2}}]',
    '<|python_tag|>{"name": "f", "parameters": {"a": 2}}',
    '<TOOLCALL>[{"name": "f", "arguments": {"a": 2}}]</TOOLCALL>',
    '[TOOL_CALLS]f[ARGS]{"a": 2}',
    '<function=f>{"a": 2}</function>',
]
CONSIDERED = [
    "",
    "\n\n",
    f"The format is {call(1)}; but a is 2.",
    "I answer within <tool_call></tool_call> tags.",
    "It could be [f(a=1)], or <functioncall> {",
    "I close this with </think> before I call.",
    f"<think>A thought in a thought, {call(1)}</think> goes on.",
]


@pytest.mark.parametrize("made", FORMS)
@pytest.mark.parametrize("thought", CONSIDERED)
@pytest.mark.parametrize("opened", [True, False], ids=["opened", "by the prompt"])
def test_calls_behind_reasoning_are_the_calls(
    made: str, thought: str, opened: bool
) -> None:
    text = f"{'<think>' if opened else ''}{thought}</think>\n\n{made}"
    found = calls_of(Answer(text))
    assert (list(found.calls), found.broken) == (TWO, "")


@pytest.mark.parametrize("thought", CONSIDERED)
def test_an_answer_in_words_has_no_call(thought: str) -> None:
    answer = Answer(f"<think>{thought}</think>\n\nI cannot do that.")
    found = calls_of(answer)
    assert (found.calls, found.broken) == ((), "")
    message = {"role": "user", "content": "?"}
    case = Case("x", "irrelevance", (message,), (), None)
    assert verdict_of(case, answer, "underscore").right


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        # Cut while it reasons: to vLLM's parsers of reasoning all of it is that.
        (f"<think>The format is {call(1)}", []),
        (f"\n<think>\nThe format is {call(1)}\n", []),
        (f"<think>a</think> <think>b {call(1)}</think> {call(2)}", TWO),
        (f"Well. <think>Or {call(1)}?</think> I call.\n{call(2)}", TWO),
        # Thoughts between calls.
        (
            f"<think>a</think>{call(2)}<think>or {call(1)}</think>{call(2)}",
            TWO * 2,
        ),
        (f"<think>a</think>{call(2)}\n</think>", TWO),
        (f"[THINK]Or {call(1)}[/THINK]{call(2)}", TWO),
        (f"<seed:think>Or {call(1)}</seed:think>{call(2)}", TWO),
        (f"<thinking>Or {call(1)}</thinking>{call(2)}", TWO),
        (f"<|START_THINKING|>Or {call(1)}<|END_THINKING|>{call(2)}", TWO),
        # Words about a tag, and values that spell tags.
        (f"The tag <think> opens reasoning. {call(2)}", TWO),
        *(
            (f"{before}{opened}{text_call(value)}{closed}", [("f", {"t": value})])
            for before in ("", "<think>a</think>\n")
            for opened, closed in (("<tool_call>", "</tool_call>"), ("", ""))
            for value in ("</think>", "<think>", "a <think>b</think> c", "[/THINK]")
        ),
        ('[f(t="<think>x</think>")]', [("f", {"t": "<think>x</think>"})]),
        (
            f"I call. <tool_call>{text_call('</think>')}</tool_call>",
            [("f", {"t": "</think>"})],
        ),
    ],
)
def test_where_reasoning_ends(text: str, calls: list[Any]) -> None:
    found = calls_of(Answer(text))
    assert (list(found.calls), found.broken) == (calls, "")


def test_a_server_gives_reasoning_apart_from_words_and_calls() -> None:
    def message(text: str) -> dict[str, Any]:
        found: dict[str, Any] = _completion("m", 0, 1, Answer(text))["choices"][0][
            "message"
        ]
        return found

    thought = f"The format is {call(1)}."
    called = message(f"<think>\n{thought}\n</think>\n\nI call.\n{call(2)}")
    assert (called["content"], called["reasoning_content"]) == ("I call.", thought)
    assert [c["function"]["arguments"] for c in called["tool_calls"]] == ['{"a": 2}']
    assert message(f"<think>{thought}</think>No.") == {
        "role": "assistant",
        "content": "No.",
        "reasoning_content": thought,
    }


def test_reasoning_that_the_prompt_opens_is_part_of_the_answer(tmp_path: Path) -> None:
    """A model that is cut while it reasons writes neither tag."""
    suite = write_suite(tmp_path / "data")
    (case,) = read_cases(suite, ["multiple"], limit=1).cases
    texts = {}
    for name, end in (("plain", ""), ("opens", "{{ '<think>\\n' }}")):
        template = TOOLS + SAID.replace("{% endif %}", f"{end}{{% endif %}}")
        directory = model_with(tmp_path / name, template)
        made = TransformersModel(directory, CallSettings(max_new_tokens=2))
        assert made.template == "tokenizer"
        assert made.prompt(case).endswith("<think>\n") == (name == "opens")
        ((_, answer),) = next(iter(made.answers([case])))
        texts[name] = answer.text
    assert texts["opens"].startswith("<think>\n")
    assert "<think>" not in texts["plain"]
