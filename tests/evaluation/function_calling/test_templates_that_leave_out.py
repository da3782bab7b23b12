"""Models whose own chat template leaves tools, results or system prompts out without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.data.chat import Conversation, Message, RowError, ToolCall
from alia_ctx.errors import ConfigError, DataError
from alia_ctx.evaluation.function_calling import read_cases
from alia_ctx.workflow.call_generation import TransformersModel
from alia_ctx.workflow.call_writer import CallSettings
from tests.evaluation.function_calling.small_suite import write_suite
from tests.evaluation.function_calling.test_evaluate_calls import alia, save_small

SAID = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}{{ tools | tojson }}\n{% endif %}"
ROLES = (
    "{% for m in messages %}{% if m.role in ROLES %}{{ m.role }} {{ m.content }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


def model_with(directory: Path, template: str) -> Path:
    save_small(directory)
    (directory / "chat_template.jinja").write_text(template)
    return directory


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "data")


def asked(directory: Path, suite: Path, *words: Any) -> str:
    out = directory.parent / "out"
    where = ["--data", suite, "--output", out, "--limit", 1, "--max-new-tokens", 2]
    return alia("evaluate-calls", directory, *where, "--categories", "multiple", *words)


def test_the_shipped_one_stands_in_and_it_is_said(suite: Path, tmp_path: Path) -> None:
    directory = model_with(tmp_path / "m", SAID)
    table = asked(directory, suite)
    assert "template chatml-tools" in table
    assert "its own chat template shows no tools, and chatml-tools stands in" in table
    model = TransformersModel(directory, CallSettings())
    (case,) = read_cases(suite, ["multiple"], limit=1).cases
    assert all(
        f["name"].replace(".", "_") in model.prompt(case) for f in case.functions
    )


def test_answers_end_where_turns_of_the_template_do(tmp_path: Path) -> None:
    """Calls may end with a token of their own, which no file of the model names."""
    calls = (
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>"
        "{% endfor %}{{ '<pad>' if m.tool_calls else '<|im_end|>' }}"
    )
    own = TOOLS + SAID.replace("{{ m.content }}<|im_end|>", "{{ m.content or '' }}END")
    directory = model_with(tmp_path / "m", own.replace("END", calls))
    model = TransformersModel(directory, CallSettings())
    special = model._tokenizer.special
    assert {special["<|im_end|>"], special["<pad>"]} <= {*model.statement["stop_ids"]}
    assert not [note for note in model.notes if "not read" in note]
    bare = calls.replace("<tool_call>", "").replace("</tool_call>", "")
    directory = model_with(tmp_path / "bare", own.replace("END", bare))
    model = TransformersModel(directory, CallSettings())
    assert special["<pad>"] in model.statement["stop_ids"]
    assert not [note for note in model.notes if "not read" in note]
    shipped = TransformersModel(directory, CallSettings(), "chatml-tools")
    assert special["<pad>"] not in shipped.statement["stop_ids"]


@pytest.mark.parametrize("as_file", [False, True])
def test_one_that_is_named_is_refused(
    as_file: bool, suite: Path, tmp_path: Path
) -> None:
    directory = model_with(tmp_path / "m", SAID)
    named = tmp_path / "m" / "chat_template.jinja" if as_file else "tokenizer"
    with pytest.raises(ConfigError, match="shows the model no tools"):
        asked(directory, suite, "--template", named)
    assert not (tmp_path / "out").exists()


def test_one_that_shows_them_is_kept(suite: Path, tmp_path: Path) -> None:
    directory = model_with(tmp_path / "m", TOOLS + SAID)
    table = asked(directory, suite)
    assert "template tokenizer" in table
    assert "stands in" not in table


def test_tools_that_a_system_prompt_hides_are_not_shown(tmp_path: Path) -> None:
    hides = f"{{% if messages[0].role != 'system' %}}{TOOLS}{{% endif %}}{SAID}"
    model = TransformersModel(model_with(tmp_path / "m", hides), CallSettings())
    assert model.template == "chatml-tools"


@pytest.mark.parametrize(
    ("roles", "note"), [(["user", "system"], False), (["user", "tool"], True)]
)
def test_results_and_system_prompts(
    roles: list[str], note: bool, tmp_path: Path
) -> None:
    """A conversation that goes on from results which the model does not see is refused."""
    template = TOOLS + ROLES.replace("ROLES", json.dumps(roles))
    model = TransformersModel(model_with(tmp_path / "m", template), CallSettings())
    assert model.template == "tokenizer"
    assert any("system prompts" in told for told in model.notes) is note
    tools = '[{"type": "function", "function": {"name": "f", "parameters": {}}}]'
    turns = (
        Message("user", "x"),
        Message("assistant", None, (ToolCall("f", "{}", "call00001"),)),
        Message("tool", "7", name="f", call_id="call00001"),
    )
    assert model.conversation_ids(Conversation(turns[:1], tools))
    if "tool" in roles:
        assert model.conversation_ids(Conversation(turns, tools))
    else:
        with pytest.raises(RowError, match="shows no results"):
            model.conversation_ids(Conversation(turns, tools))


MISTRAL = (  # as Mistral's: no header before an answer, tools before the last question
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}[SYS] {{ m.content }}"
    "{% elif m.role == 'user' %}"
    "{% if tools and loop.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}"
    "[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{% endfor %}]{% else %} {{ m.content }}{% endif %}{% endfor %}"
)
FOREIGN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.tool_calls or [] %}"
    "[CRIDA]{{ c.function.name }}{{ c.function.arguments | tojson }}[/CRIDA]"
    "{% endfor %}{{ m.content or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADLESS = SAID.replace("{% if add", "{% if false and add")


def test_one_without_a_header_of_answers_is_asked_as_it_is(
    suite: Path, tmp_path: Path
) -> None:
    directory = model_with(tmp_path / "m", MISTRAL.replace("loop.last", "true"))
    model = TransformersModel(directory, CallSettings())
    assert (model.template, model.notes) == ("tokenizer", ())
    (case,) = read_cases(suite, ["multiple"], limit=1).cases
    assert model.prompt(case).endswith("[INST] multiple 0?[/INST]")


def test_one_that_asks_for_no_answer_is_refused(suite: Path, tmp_path: Path) -> None:
    directory = model_with(tmp_path / "m", TOOLS + HEADLESS)
    with pytest.raises(DataError, match=r"does not heed.* give a .*chatml-tools"):
        asked(directory, suite)


def test_calls_in_a_form_that_is_not_read_are_told(suite: Path, tmp_path: Path) -> None:
    directory = model_with(tmp_path / "m", TOOLS + FOREIGN)
    table = asked(directory, suite)
    assert r"writes a call as '[CRIDA]get_value" in table
    assert "answers in that form are not read" in table
