"""What a template shows at all, and what it writes that nobody said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alia_ctx.data.chat import ChatEncoder, Conversation, Message, RowError, ToolCall
from alia_ctx.data.documents.chat_spec import ChatSpec
from tests.tokenizers import byte_level, save

TURNS = """{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content or m.tool_calls[0].function | tojson }}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
TOOLS = "{%- for t in tools or [] -%}{{ t | tojson }}{%- endfor -%}"
ONLY = "{%- for m in messages if m.role != "
NO_SYSTEM = TOOLS + TURNS.replace("{%- for m in messages ", f'{ONLY}"system" ')
NO_RESULTS = TOOLS + TURNS.replace("{%- for m in messages ", f'{ONLY}"tool" ')
# Tools only where nobody wrote a system prompt.
HIDDEN_TOOLS = (
    "{%- if messages[0].role != 'system' -%}" + TOOLS + "{%- endif -%}" + TURNS
)

USER, SAID = Message("user", "u"), Message("assistant", "an answer")
SYSTEM = Message("system", "be brief")
OFFERED = json.dumps([{"name": "f", "description": "d", "parameters": {}}])
CALLED = (Message("assistant", None, (ToolCall("f", "{}"),)), Message("tool", "7"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(byte_level(), tmp_path_factory.mktemp("made") / "tokenizer")


def encoder(directory: Path, folder: Path, text: str, **spec: str) -> ChatEncoder:
    path = folder / "t.jinja"
    path.write_text(text)
    return ChatEncoder(directory, ChatSpec(template=str(path), **spec))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "talk", "lost"),
    [
        (NO_SYSTEM, Conversation((SYSTEM, USER, SAID)), "system prompts"),
        (TURNS, Conversation((USER, SAID), OFFERED), "tools"),
        (HIDDEN_TOOLS, Conversation((SYSTEM, USER, SAID), OFFERED), "tools"),
        (NO_RESULTS, Conversation((USER, *CALLED, SAID), OFFERED), "results of tools"),
    ],
)
def test_what_a_template_does_not_show_is_not_answered(
    template: str, talk: Conversation, lost: str, directory: Path, tmp_path: Path
) -> None:
    made = encoder(directory, tmp_path, template)
    assert lost in made.shown.left_out()
    with pytest.raises(RowError, match=f"not_shown: the template shows no {lost}"):
        made.encode(talk)
    assert made.encode(Conversation((USER, SAID))).trained.any()


def test_reasoning_that_is_not_shown_is_counted(directory: Path) -> None:
    shipped = ChatEncoder(directory, ChatSpec())
    assert shipped.shown.left_out() == ["reasoning"]
    thought = Message("assistant", "b", reasoning="so")
    encoded = shipped.encode(Conversation((USER, thought)))
    assert encoded.unshown_reasoning == 1 and "so" not in encoded.text


SHOWS = (
    "{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content else '' }}"
)
BODY = "{{ m.content or m.tool_calls[0].function | tojson }}"
# As Qwen 3: of the last turn, and what stands in tags among the words of others goes.
STRIPPED = (
    "{{ m.content if loop.last or not m.content else m.content.split('</think>')[-1] }}"
    "{{ m.tool_calls[0].function | tojson if m.tool_calls else '' }}"
)


@pytest.mark.parametrize(
    ("body", "train_on", "lost"),
    [
        (BODY, "assistant", 2),
        (SHOWS + BODY, "assistant", 0),
        ("{% if not m.tool_calls %}" + SHOWS + "{% endif %}" + BODY, "assistant", 1),
        ("{% if m.tool_calls %}" + SHOWS + "{% endif %}" + BODY, "assistant", 1),
        ("{% if loop.last %}" + SHOWS + "{% endif %}" + BODY, "last_turn", 1),
        (SHOWS + STRIPPED, "last_turn", 1),
        ("{% if loop.last %}" + SHOWS + "{% endif %}" + STRIPPED, "last_turn", 2),
    ],
)
def test_lost_reasoning_is_counted_turn_by_turn(
    body: str, train_on: str, lost: int, directory: Path, tmp_path: Path
) -> None:
    """Of the same words, too, as a template may leave out one of them."""
    made = encoder(
        directory, tmp_path, TOOLS + TURNS.replace(BODY, body), train_on=train_on
    )
    call = Message("assistant", None, (ToolCall("f", "{}"),), reasoning="so")
    turns = (USER, call, CALLED[1], Message("assistant", "b", reasoning="so"))
    if body.endswith(STRIPPED):
        turns = (USER, Message("assistant", "<think>so</think>a"), *turns)
    assert made.encode(Conversation(turns, OFFERED)).unshown_reasoning == lost
    assert made.encode(Conversation((USER, SAID))).unshown_reasoning == 0


@pytest.mark.parametrize("added", ["\n", "\nGoodbye.", " "])
@pytest.mark.parametrize("turns", [2, 4])
def test_only_what_was_said_is_trained(
    added: str, turns: int, directory: Path, tmp_path: Path
) -> None:
    """What a template puts between words and stop token is refused, and what it puts
    behind the stop token is not trained.
    """
    talk = Conversation((USER, SAID, Message("user", "v"), Message("assistant", "b")))
    talk = talk.until(turns)
    before = TURNS.replace(
        "<|im_end|>", f"{{{{ {added!r} if m.role == 'assistant' }}}}<|im_end|>"
    )
    with pytest.raises(RowError, match="text_after_answer"):
        encoder(directory, tmp_path, before).encode(talk)
    behind = TURNS.replace("<|im_end|>", f"<|im_end|>{added}more</s>")
    made = encoder(directory, tmp_path, behind)
    encoded = made.encode(talk)
    said = made.tokenizer.auto.decode(encoded.ids[encoded.trained].tolist())
    assert said == "an answer<|im_end|>" + ("b<|im_end|>" if turns == 4 else "")


def test_blanks_of_the_answer_itself_are_its_own(
    directory: Path, tmp_path: Path
) -> None:
    made = encoder(directory, tmp_path, TURNS)
    encoded = made.encode(Conversation((USER, Message("assistant", "yes\n\n"))))
    said = made.tokenizer.auto.decode(encoded.ids[encoded.trained].tolist())
    assert said == "yes\n\n<|im_end|>"


@pytest.mark.parametrize("train_on", ["assistant", "last_turn"])
def test_a_prompt_that_no_answer_follows_is_named(
    train_on: str, directory: Path, tmp_path: Path
) -> None:
    """To train on the last turn alone does not help there, and is not advised."""
    other = TURNS.replace("<|im_start|>assistant\n", "<|im_start|>assistant\nhm: ")
    with pytest.raises(RowError, match="have no beginning; take a template") as caught:
        encoder(directory, tmp_path, other, train_on=train_on).encode(
            Conversation((USER, SAID))
        )
    assert "train on last_turn" not in str(caught.value)
