"""What ends turns as training has it is what exports and evaluation stop at."""

from __future__ import annotations

from pathlib import Path

import pytest

from alia_ctx.data.chat import ChatEncoder, Conversation, Message, ToolCall
from alia_ctx.data.chat.stops import stop_tokens
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.chat.turns import special_pattern
from alia_ctx.data.documents.chat_spec import ChatSpec
from tests.data.chat.tokenizers import save_chat_tokenizer

# As Llama 3.1's and functionary's: calls end with WAIT, words with END.
OWN_STOP = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}<function={{ c.function.name }}>"
    "{{ c.function.arguments | tojson }}</function>{% endfor %}"
    "{{ WAIT if m.tool_calls else END }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def own_stop(wait: str, end: str) -> str:
    return OWN_STOP.replace("WAIT", repr(wait)).replace("END", repr(end))


TOOLS = (
    '[{"type": "function", "function": {"name": "g", "description": "d", "parameters": '
    '{"type": "object", "properties": {"a": {"type": "integer"}}}}}]'
)
USER, SAID = Message("user", "how much?"), Message("assistant", "so much")
CALL = ToolCall("g", '{"a": 1}')
ONE = Message("assistant", None, (CALL,))
TALKS = [
    Conversation((USER, SAID)),
    Conversation((USER, ONE), TOOLS),
    Conversation((USER, Message("assistant", "Wait.", (CALL,))), TOOLS),
    Conversation((USER, Message("assistant", None, (CALL, CALL))), TOOLS),
    Conversation((USER, ONE, Message("tool", "7"), SAID, USER, ONE), TOOLS),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ("<|im_end|>",)),
        (own_stop("<|im_end|>", "<|im_end|>\n"), ("<|im_end|>",)),
        (own_stop("<pad>", "<|im_end|>"), ("<|im_end|>", "<pad>")),
        (own_stop("<pad>\n", "<|im_end|>\n"), ("<|im_end|>", "<pad>")),
        (own_stop("<pad>", "</s>"), ("</s>", "<pad>")),
        (own_stop("<pad></s>", "</s>"), ("</s>",)),
        (own_stop("<|im_end|><pad>", "<|im_end|></s>"), ("<|im_end|>", "<pad>")),
    ],
)
def test_turns_that_are_trained_end_with_what_is_named(
    text: str | None, expected: tuple[str, ...], tmp_path: Path
) -> None:
    name = "chatml-tools" if text is None else str(tmp_path / "t.jinja")
    if text is not None:
        Path(name).write_text(text)
    directory = save_chat_tokenizer("byte level", tmp_path / "tokenizer")
    encoder = ChatEncoder(directory, ChatSpec(template=name))
    special = encoder.tokenizer.special
    template = ChatTemplate(name, encoder.tokenizer)
    stops = stop_tokens(template, special_pattern(special))
    assert stops == expected
    learned = set()
    for talk in TALKS:
        encoded = encoder.encode(talk)
        trained = [*encoded.trained, False]
        ends = [n for n in range(len(encoded.ids)) if trained[n] and not trained[n + 1]]
        assert ends
        learned |= {int(encoded.ids[end]) for end in ends}
    assert learned == {special[token] for token in stops}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Blanks before the stop token, which training refuses.
        (own_stop("\n<pad>", " <|im_end|>"), ("<|im_end|>", "<pad>")),
        # A token that closes each call would end the turn before the second.
        (
            own_stop("", "<|im_end|>").replace("</function>", "</function><pad>"),
            ("<|im_end|>",),
        ),
        # No more than one call, no system prompt, no calls at all.
        (
            "{% if messages[-1].tool_calls and messages[-1].tool_calls | length > 1 %}"
            "{{ raise_exception('one call') }}{% endif %}"
            + own_stop("<pad>", "<|im_end|>"),
            ("<|im_end|>", "<pad>"),
        ),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
            + own_stop("<pad>", "<|im_end|>"),
            ("<|im_end|>", "<pad>"),
        ),
        (
            "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            ("</s>",),
        ),
        (own_stop("", ""), ()),
    ],
)
def test_ends_of_turns_of_other_templates(
    text: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "t.jinja").write_text(text)
    directory = save_chat_tokenizer("byte level", tmp_path / "tokenizer")
    tokenizer = ChatEncoder(directory, ChatSpec()).tokenizer
    template = ChatTemplate(str(tmp_path / "t.jinja"), tokenizer)
    assert stop_tokens(template, special_pattern(tokenizer.special)) == expected
