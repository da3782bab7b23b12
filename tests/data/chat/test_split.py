"""Conversations that are too long: what `split` leaves, by trying every end of a turn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.data.chat import ChatEncoder, RowError, read_record
from alia_ctx.data.documents.chat_spec import ChatSpec
from tests.cli.test_chat_commands import alia
from tests.tokenizers import byte_level, save

TOOL = {"name": "f", "description": "d", "parameters": {}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def talk(draw: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for _ in range(draw.randint(1, 6)):
        words = "word " * draw.randint(1, 15)
        messages.append({"role": "user", "content": words})
        if draw.random() < 0.5:
            content = draw.choice([None, "Let me look."])
            messages += [
                {"role": "assistant", "content": content, "tool_calls": [CALL]},
                {"role": "tool", "content": "r" * draw.randint(1, 40)},
            ]
        words = "answer " * draw.randint(1, 10)
        messages.append({"role": "assistant", "content": words})
    if draw.random() < 0.3:
        messages.insert(0, {"role": "system", "content": "s" * draw.randint(1, 60)})
    return {"messages": messages, "tools": [TOOL]}


@pytest.mark.parametrize("train_on", ["assistant", "last_turn"])
def test_the_most_turns_that_fit_and_are_answered(
    train_on: Any, tmp_path: Path
) -> None:
    directory = save(byte_level(), tmp_path / "tokenizer")
    whole = ChatEncoder(directory, ChatSpec(train_on=train_on))
    render = whole.tokenizer.auto.apply_chat_template
    draw, kept, left_out = random.Random(1), 0, 0
    for most in (300, 450, 700):
        spec = ChatSpec(train_on=train_on, max_length="split", max_tokens=most)
        encoder = ChatEncoder(directory, spec)
        for _ in range(25):
            conversation = read_record(talk(draw), "openai")
            messages = conversation.messages_for_template()
            tools = conversation.tools_for_template()
            fitting = [
                stop
                for stop in range(1, len(messages) + 1)
                if messages[stop - 1]["role"] == "assistant"
                and len(
                    render(
                        messages[:stop],
                        tools=tools,
                        chat_template=encoder.template.text,
                        return_dict=False,
                    )
                )
                <= most
            ]
            if not fitting:
                with pytest.raises(RowError, match="too_long"):
                    encoder.encode(conversation)
                left_out += 1
                continue
            encoded, stop = encoder.encode(conversation), max(fitting)
            assert encoded.cut_turns == len(messages) - stop
            kept += encoded.cut_turns > 0
            expected = whole.encode(conversation.until(stop))
            for name in ("ids", "trained", "said", "called"):
                assert (getattr(encoded, name) == getattr(expected, name)).all()
    assert kept > 5 and left_out


def test_converted_conversations_end_where_they_were_cut(tmp_path: Path) -> None:
    directory = save(byte_level(), tmp_path / "tokenizer")
    words = ("one", "first", "two", "second " * 40)
    roles = ("user", "assistant") * 2
    turns = [
        {"role": role, "content": said.strip()}
        for role, said in zip(roles, words, strict=True)
    ]
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"messages": turns[:n]}) + "\n" for n in (4, 2)))
    told = alia(
        *("convert-chat", rows, "--tokenizer", directory, "--max-tokens", 80, "-n", 2),
        *("--max-length", "split", "--output", output),
    )
    assert "lost 2 turns" in told and "second" not in told
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["messages"] for record in written] == [turns[:2]] * 2
