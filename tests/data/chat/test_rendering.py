"""What is trained on is, to the character, what `AutoTokenizer` renders."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from alia_ctx.data.chat.conversation import Conversation, Message, RowError, ToolCall
from alia_ctx.data.chat.forms import FORMS, read_record
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError
from tests.data.chat.chatml import chatml
from tests.data.chat.conversations import cases
from tests.data.chat.talks import nested
from tests.data.chat.tokenizers import save_chat_tokenizer
from tests.paths import ROOT

SHIPPED = ROOT / "alia_ctx" / "data" / "chat" / "templates" / "chatml-tools.jinja"
# Everything that templates of others use: dates, indents, ASCII, special tokens, macros.
WIDE = """{{ bos_token }}{{ strftime_now("%Y %d") }}
{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- for m in messages %}
<|im_start|>{{ m['role'] }}
{% if m.content is defined and m.content is not none %}{{ m.content | trim }}{% endif %}
{%- for call in m.tool_calls or [] %}
<call>{{ call.function.name }} {{ call.function.arguments | tojson(ensure_ascii=True) }}</call>
{%- endfor %}<|im_end|>{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    return save_chat_tokenizer("byte level", folder, chat_template=WIDE)


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_equal_to_transformers_and_to_chatml_by_hand(
    form: str, directory: Path
) -> None:
    auto = AutoTokenizer.from_pretrained(directory)
    tokenizer = HubTokenizer(directory)
    shipped = ChatTemplate("chatml-tools", tokenizer)
    own = ChatTemplate("tokenizer", tokenizer)
    for case in cases(form):
        read = read_record(case.record, form)
        expected = auto.apply_chat_template(
            case.messages,
            tools=case.tools,
            chat_template=SHIPPED.read_text(),
            tokenize=False,
        )
        assert shipped.render(read) == expected
        assert expected == "".join(text for text, _ in chatml(case))
        wide = auto.apply_chat_template(
            case.messages, tools=nested(case.tools), tokenize=False
        )
        assert own.render(read) == wide
        assert datetime.now().strftime("%Y %d") in wide


def test_a_file_is_taken_as_it_is(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_bytes(WIDE.replace("\n", "\r\n").encode())
    template = ChatTemplate(str(path), HubTokenizer(directory))
    assert template.text == WIDE.replace("\n", "\r\n")
    assert template.dated


def test_one_of_several_templates_is_chosen_as_transformers_does(
    tmp_path: Path,
) -> None:
    folder = save_chat_tokenizer(
        "byte level",
        tmp_path / "t",
        chat_template=[
            {"name": "default", "template": WIDE.replace("<call>", "<plain>")},
            {"name": "tool_use", "template": WIDE},
        ],
    )
    [case] = cases("xlam", 1)
    template = ChatTemplate("tokenizer", HubTokenizer(folder))
    assert "<call>" in template.render(read_record(case.record))


def test_flat_nested_and_bare_tools_look_alike(directory: Path) -> None:
    template = ChatTemplate("chatml-tools", HubTokenizer(directory))
    function = '"name": "f", "description": "d", "parameters": {"type": "object"}'
    texts = {
        template.render(Conversation((Message("user", "u"),), tools))
        for tools in (
            f"[{{{function}}}]",
            f'[{{"type": "function", {function}}}]',
            f'[{{"type": "function", "function": {{{function}}}}}]',
        )
    }
    assert len(texts) == 1
    assert '{"type": "function", "function": {"name": "f", "desc' in texts.pop()


def test_parallel_calls_results_and_a_last_turn_of_calls(directory: Path) -> None:
    template = ChatTemplate("chatml-tools", HubTokenizer(directory))
    calls = (ToolCall("f", '{"a": "é"}'), ToolCall("f", "{}"))
    talk = (
        Message("user", "u"),
        Message("assistant", "words", calls),
        Message("tool", "1"),
        Message("tool", "2"),
        Message("assistant", None, calls[:1]),
    )
    text = template.render(Conversation(talk, '[{"name": "f"}]'), prompt=False)
    assert text.endswith(
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nwords\n"
        '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n"
        "<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call><|im_end|>\n'
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{% for m in messages %}", "end of template"),
        ("{{ messages[0].content }}", "add_generation_prompt"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_a_template_that_does_not_serve(
    text: str, told: str, directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jinja"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        ChatTemplate(str(path), HubTokenizer(directory))


def test_a_template_that_is_not_there(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chatml-tools, tokenizer or the path"):
        ChatTemplate(str(tmp_path / "none.jinja"), HubTokenizer(directory))
    bare = save_chat_tokenizer("byte level", tmp_path / "t")
    with pytest.raises(DataError, match="has no chat template"):
        ChatTemplate("tokenizer", HubTokenizer(bare))


def test_a_template_refuses_one_conversation(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.jinja"
    path.write_text(
        WIDE
        + "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}"
    )
    template = ChatTemplate(str(path), HubTokenizer(directory))
    talk = Conversation((Message("user", "u"), Message("assistant", "a")) * 2)
    with pytest.raises(RowError, match=r"template_refuses.*too many"):
        template.render(talk)
