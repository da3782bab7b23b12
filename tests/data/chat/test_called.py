"""Which tokens are of calls: behind words too, and however a template writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alia_ctx.data.chat import ChatEncoder, Conversation, Message, RowError, ToolCall
from alia_ctx.data.documents.chat_spec import ChatSpec
from tests.data.chat.tokenizers import CHAT_FAMILIES, save_chat_tokenizer

ASK = Message("user", "Weather in Rome and Oslo?")
TOOLS = json.dumps([{"name": "weather", "description": "d", "parameters": {}}])
ROME = ToolCall("weather", '{"city": "Rome"}', "call00001")
OSLO = ToolCall("weather", '{"city": "Oslo"}', "call00002")
RESULTS = (
    Message("tool", "30 C", call_id="call00001"),
    Message("tool", "-5 C", call_id="call00002"),
)

HEAD = "{%- for t in tools or [] -%}{{ t | tojson }}{%- endfor -%}{%- for m in messages -%}"
TAIL = (
    "<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
TURN = "<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
EACH = "{%- for c in m.tool_calls or [] -%}"
# As Llama 3.1, Mistral and Qwen 3 Coder write calls; and one with a special token.
TEMPLATES = {
    "json": (EACH + "{{ c.function | tojson }}{%- endfor -%}", "{"),
    "list": (
        "{%- if m.tool_calls -%}[{%- for c in m.tool_calls -%}{{ c.function.name }}("
        "{%- for k, v in c.function.arguments.items() -%}{{ k }}={{ v | tojson }}"
        "{%- endfor -%})]{%- endfor -%}{%- endif -%}",
        "[weather(",
    ),
    "xml": (
        "{%- for c in m.tool_calls or [] -%}<function={{ c.function.name }}>"
        "{{ c.function.arguments | tojson }}</function>{%- endfor -%}",
        "<function=",
    ),
    "special": (
        "{%- if m.tool_calls -%}<|im_start|>" + EACH + "{{ c.function | tojson }}"
        "{%- endfor -%}{%- endif -%}",
        "<|im_start|>{",
    ),
}


def called(encoder: ChatEncoder, talk: Conversation) -> list[str]:
    """The text of each run of tokens of calls."""
    encoded, runs, last = encoder.encode(talk), [], False
    assert not (encoded.called & ~encoded.trained).any()
    for token, is_call in zip(
        encoded.ids.tolist(), encoded.called.tolist(), strict=True
    ):
        if is_call:
            runs = runs if last else [*runs, []]
            runs[-1].append(token)
        last = is_call
    decode = encoder.tokenizer.auto.decode
    return [decode(run, clean_up_tokenization_spaces=False) for run in runs]


@pytest.mark.parametrize("words", [None, "Let me look.", "I use </tool_call>\n{", "<"])
@pytest.mark.parametrize(
    ("family", "header"),
    [
        *((f, "assistant") for f in CHAT_FAMILIES),
        ("byte level", "assistant_with_header"),
    ],
)
def test_calls_of_the_shipped_template(
    family: str, header: str, words: str | None, tmp_path: Path
) -> None:
    spec = ChatSpec(train_on=header)  # type: ignore[arg-type]
    encoder = ChatEncoder(save_chat_tokenizer(family, tmp_path / "t"), spec)
    turns = (ASK, Message("assistant", words, (ROME, OSLO)), *RESULTS)
    end = Message("assistant", "30 and -5 C.")
    one = (Message("user", "And Rome alone?"), Message("assistant", words, (ROME,)))
    rome, oslo = (
        f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
        for city in ("Rome", "Oslo")
    )
    before = "\n" if words else ""
    told = called(encoder, Conversation((*turns, end, *one), TOOLS))
    expected = [f"{before}{rome}\n{oslo}<|im_end|>", f"{before}{rome}<|im_end|>"]
    # A token that is of words and of the call is of the words.
    assert [text.lstrip() for text in told] == [text.lstrip() for text in expected]
    assert called(encoder, Conversation((ASK, end), TOOLS)) == []


@pytest.mark.parametrize("words", [None, "Let me look."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_of_other_templates(name: str, words: str | None, tmp_path: Path) -> None:
    calls, begin = TEMPLATES[name]
    (tmp_path / "t.jinja").write_text(HEAD + TURN + calls + TAIL)
    directory = save_chat_tokenizer("byte level", tmp_path / "t")
    encoder = ChatEncoder(directory, ChatSpec(template=str(tmp_path / "t.jinja")))
    message = Message("assistant", words, (ROME,))
    [told] = called(encoder, Conversation((ASK, message), TOOLS))
    assert told.startswith(begin) and told.endswith("<|im_end|>")
    assert told.count("Rome") == 1


CALL = "<tool_call>{{ c.function | tojson }}</tool_call>"
DEEP = "<|im_start|>{{ c.function.name }}\n```json\n{{ c.function.arguments | tojson }}\n```"


@pytest.mark.parametrize(
    ("calls", "wrong"),
    [
        (EACH + CALL + "{%- endfor -%}{{ 'DONE' if m.tool_calls }}", "DONE"),
        (EACH + CALL + "{%- endfor -%}{{ '\n' if m.tool_calls }}", "behind calls"),
        (EACH + CALL + " done{%- endfor -%}", "behind calls"),
        (EACH + "{{ 'and' if not loop.first }}" + CALL + "{%- endfor -%}", "between"),
        (EACH + CALL + "{{ '\nThen' if not loop.last }}{%- endfor -%}", "between"),
        (
            "{{ ' I call:' if m.tool_calls and m.content }}"
            + EACH
            + CALL
            + "{%- endfor -%}",
            "before calls",
        ),
        (EACH + CALL + "{%- endfor -%}", None),
        (EACH + CALL + "{{ '\n' }}{%- endfor -%}", None),
        (EACH + "\nAction: {{ c.function | tojson }}{%- endfor -%}", None),
        (EACH + DEEP + "<|im_end|>{{ '\n' if not loop.last }}{%- endfor -%}", None),
        (
            "{%- if m.tool_calls -%}[TOOL_CALLS] ["
            + EACH
            + '{"name": "{{ c.function.name }}", '
            '"arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}'
            "{{ ', ' if not loop.last }}{%- endfor -%}][/TOOL_CALLS]{%- endif -%}",
            None,
        ),
    ],
)
def test_nothing_that_nobody_said_stands_beside_calls(
    calls: str, wrong: str | None, tmp_path: Path
) -> None:
    (tmp_path / "t.jinja").write_text(HEAD + TURN + calls + TAIL)
    directory = save_chat_tokenizer("byte level", tmp_path / "t")
    encoder = ChatEncoder(directory, ChatSpec(template=str(tmp_path / "t.jinja")))
    turns = (ASK, Message("assistant", "Yes.", (ROME, OSLO)), *RESULTS)
    talk = Conversation((*turns, Message("assistant", "30")), TOOLS)
    if wrong is None:
        assert encoder.encode(talk).trained.any()
        return
    with pytest.raises(RowError, match=f"text_after_answer.*{wrong}"):
        encoder.encode(talk)
    assert encoder.encode(Conversation((ASK, Message("assistant", "30")))).text


def test_words_are_not_moved_behind_calls(tmp_path: Path) -> None:
    turn = (
        "<|im_start|>{{ m.role ~ '\\n' }}"
        + EACH
        + CALL
        + "{%- endfor -%}{{ m.content or '' }}"
    )
    (tmp_path / "t.jinja").write_text(HEAD + turn + TAIL)
    directory = save_chat_tokenizer("byte level", tmp_path / "t")
    encoder = ChatEncoder(directory, ChatSpec(template=str(tmp_path / "t.jinja")))
    with pytest.raises(RowError, match=r"text_after_answer.*words behind its calls"):
        encoder.encode(
            Conversation((ASK, Message("assistant", "Yes.", (ROME,))), TOOLS)
        )


@pytest.mark.parametrize(
    ("words_end", "calls_end", "trained"),
    [
        ("<|im_end|></s>\n", "<|im_end|></s>\n", "<|im_end|>"),
        ("<|im_end|>\n", "<|im_end|></s>\n", "<|im_end|></s>"),  # an own token
        ("</s>", "<|im_end|></s>", "<|im_end|></s>"),  # the first closes calls
    ],
)
def test_turns_of_words_and_of_calls_end_alike(
    words_end: str, calls_end: str, trained: str, tmp_path: Path
) -> None:
    end = f"{{{{ {calls_end!r} if m.tool_calls else {words_end!r} }}}}{{% endfor -%}}"
    tail = TAIL.replace("<|im_end|>\n{% endfor -%}", end)
    (tmp_path / "t.jinja").write_text(
        HEAD + TURN + EACH + CALL + "{%- endfor -%}" + tail
    )
    directory = save_chat_tokenizer("byte level", tmp_path / "t")
    encoder = ChatEncoder(directory, ChatSpec(template=str(tmp_path / "t.jinja")))
    [told] = called(
        encoder, Conversation((ASK, Message("assistant", None, (ROME,))), TOOLS)
    )
    assert told.partition("</tool_call>")[2] == trained
