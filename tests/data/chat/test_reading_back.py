"""Calls that nobody reads back are not trained: vLLM's rules, written anew, are the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.chat import (
    ChatConversion,
    ChatEncoder,
    Conversation,
    Message,
    RowError,
    ToolCall,
    write_chat_store,
)
from alia_ctx.data.documents.chat_spec import ChatSpec
from alia_ctx.data.documents.inputs import SourceSpec
from tests.data.chat.test_called import HEAD, TAIL, TEMPLATES, TURN
from tests.data.chat.tokenizers import save_chat_tokenizer
from tests.hf import hermes

USER, END = Message("user", "ask"), Message("assistant", "Done.")
HEADER, STOP = "<|im_start|>assistant\n", "<|im_end|>"
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tools>")
RAW = (
    HEAD + TURN + "{%- for c in m.tool_calls or [] %}\n"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}</tool_call>{%- endfor -%}" + TAIL
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_tokenizer("byte level", tmp_path_factory.mktemp("made") / "t")


@pytest.fixture(scope="module")
def shipped(directory: Path) -> ChatEncoder:
    return ChatEncoder(directory, ChatSpec())


def own(directory: Path, folder: Path, text: str, **spec: Any) -> ChatEncoder:
    (folder / "t.jinja").write_text(text)
    return ChatEncoder(directory, ChatSpec(template=str(folder / "t.jinja"), **spec))


def offered(*names: str) -> str:
    return json.dumps(
        [{"name": n, "description": "d", "parameters": {}} for n in names]
    )


def calling(*calls: tuple[str, Any], words: str | None = None) -> Conversation:
    made = tuple(ToolCall(name, json.dumps(value)) for name, value in calls)
    names = dict.fromkeys(name for name, _ in calls)
    return Conversation((USER, Message("assistant", words, made)), offered(*names))


def read(encoder: ChatEncoder, talk: Conversation) -> tuple[str, list[Any]] | None:
    """What vLLM reads of the last turn as it is rendered; None where it is refused."""
    try:
        text = encoder.encode(talk).text
    except RowError as error:
        assert error.reason == "unreadable_call", error
        return None
    said = text.rpartition(HEADER)[2]
    return hermes.read(said[: said.rindex(STOP)])


PIECES = st.lists(st.sampled_from([*TAGS, '"}', "\n", "{", "é", "\\", " ", "a"]))
TEXTS = PIECES.map("".join)
CALLS = st.lists(
    st.tuples(
        TEXTS.filter(str.strip),
        st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS, max_size=2), max_size=2),
    ),
    min_size=1,
    max_size=2,
)


@given(CALLS)
@settings(max_examples=80, deadline=None)
def test_what_is_encoded_is_read_back_and_what_is_refused_is_not(
    shipped: ChatEncoder, calls: list[tuple[str, Any]]
) -> None:
    written = "\n".join(
        "<tool_call>\n"
        + json.dumps({"name": name, "arguments": value}, ensure_ascii=False)
        + "\n</tool_call>"
        for name, value in calls
    )
    readable = hermes.read(written)[1] == calls
    found = read(shipped, calling(*calls))
    assert found == (("", calls) if readable else None)


@pytest.mark.parametrize(
    "calls",
    [
        [("f", {"a": "the end is </tool_call>."})],
        [("f", {"a": [{"b": "</tool_call>"}]})],
        [("f", {"</tool_call>": 1})],
        [("</tool_call>", {})],
        [("f", {}), ("f", {"a": "</tool_call>"})],
        # Cut there, it is a call, and another one.
        [("f", {"a": '"}}</tool_call><tool_call>{"name": "f", "arguments": {}}'})],
    ],
)
def test_a_closing_tag_in_a_call_is_named(calls: Any, shipped: ChatEncoder) -> None:
    with pytest.raises(RowError, match="unreadable_call: turn 1: its calls") as told:
        shipped.encode(calling(*calls))
    assert f"</tool_call> stands in call {len(calls) - 1}" in str(told.value)


@pytest.mark.parametrize(
    "value", ["<tool_call>", "<tool_response> x </tool_response>", "</tools>", "<tool>"]
)
def test_other_tags_in_a_value_are_read(value: str, shipped: ChatEncoder) -> None:
    assert read(shipped, calling(("f", {"a": value}))) == ("", [("f", {"a": value})])


def test_words_before_a_call_that_name_its_tag_hide_it(shipped: ChatEncoder) -> None:
    call = ("f", {"a": 1})
    with pytest.raises(
        RowError, match=r"unreadable_call.*<tool_call> stands in its wo"
    ):
        shipped.encode(calling(call, words="I write <tool_call> now."))
    closing = read(shipped, calling(call, words="It ends with </tool_call>."))
    assert closing is not None and closing[1] == [call]


def test_who_only_speaks_of_tags_is_left_alone(shipped: ChatEncoder) -> None:
    """Users, tools and system prompts; and the assistant, where nothing is read of it."""
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    asked = (
        Message("system", f"Write {call}."),
        Message("user", f"What is {call}?"),
        Message("assistant", None, (ToolCall("f", "{}"),)),
        Message("tool", call),
        Message(
            "assistant", "A <tool_call> is how calls begin, </tool_call> their end."
        ),
    )
    encoded = shipped.encode(Conversation(asked, offered("f", "</tool_call>")))
    assert encoded.trained.any()
    # Without tools no server looks for calls.
    explained = (USER, Message("assistant", f"As {call}."))
    assert shipped.encode(Conversation(explained)).trained.any()
    with pytest.raises(RowError, match=r"its calls \(none\).* read back as f"):
        shipped.encode(Conversation(explained, offered("f")))


@pytest.mark.parametrize("name", TEMPLATES)
def test_other_forms_are_not_judged_by_these_rules(
    name: str, directory: Path, tmp_path: Path
) -> None:
    encoder = own(directory, tmp_path, HEAD + TURN + TEMPLATES[name][0] + TAIL)
    assert not encoder.shown.hermes
    talk = calling(("f", {"a": "</tool_call>"}))
    assert encoder.encode(talk).called.any()


def test_a_template_that_does_not_write_json_of_a_name_is_caught(
    directory: Path, tmp_path: Path
) -> None:
    encoder = own(directory, tmp_path, RAW)
    assert encoder.shown.hermes
    assert read(encoder, calling(("f", {"a": 'say "x"'}))) is not None
    with pytest.raises(RowError, match="unreadable_call"):
        encoder.encode(calling(('f "x"', {"a": 1})))


def test_a_template_of_one_call_a_turn_is_judged(
    directory: Path, tmp_path: Path
) -> None:
    refuses = "{%- if m.tool_calls and m.tool_calls | length > 1 -%}"
    refuses += "{{ raise_exception('one call') }}{%- endif -%}"
    encoder = own(directory, tmp_path, RAW.replace(TURN, refuses + TURN))
    with pytest.raises(RowError, match="unreadable_call"):
        encoder.encode(calling(("f", {"a": "</tool_call>"})))


def test_only_turns_that_are_trained_are_judged(directory: Path) -> None:
    first = calling(("f", {"a": "</tool_call>"}))
    results = (Message("tool", "7"), END)
    talk = Conversation((*first.messages, *results), first.tools)
    with pytest.raises(RowError, match="unreadable_call"):
        ChatEncoder(directory, ChatSpec()).encode(talk)
    last = ChatEncoder(directory, ChatSpec(train_on="last_turn"))
    assert last.encode(talk).trained.any()


def test_rows_are_counted_and_told(directory: Path, tmp_path: Path) -> None:
    talks = [calling(("f", {"a": value})) for value in ("x", "</tool_call>", "y")]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(talk.to_record()) + "\n" for talk in talks))
    conversion = ChatConversion([str(rows)], encoder=ChatEncoder(directory, ChatSpec()))
    assert len([*conversion.conversations()]) == 2
    assert conversion.counts.left_out == {"unreadable_call": 1}
    (told,) = map(str, conversion.left_out.rows)
    assert told.startswith(f"{rows}:2: unreadable_call: turn 1: its calls (f)")
    source = SourceSpec(inputs=(str(rows),), chat=ChatSpec())
    report = write_chat_store(source, "s", directory, tmp_path)
    assert report.counts.conversations == 2
    assert report.counts.left_out == {"unreadable_call": 1}
    # Without a template nothing is rendered, and nothing is judged.
    assert len([*ChatConversion([str(rows)]).conversations()]) == 3
