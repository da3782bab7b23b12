"""What looks like something else in a record is taken for what it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import form_of, read_record

TALK = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
LIST = json.dumps([{"name": "f", "parameters": {}}])


def system(record: dict[str, Any]) -> str | None:
    first = read_record(record).messages[0]
    return first.content if first.role == "system" else None


def test_an_empty_list_in_a_prompt_is_text() -> None:
    prompt = "If there is nothing, answer with [] alone. Be brief."
    record = {"system": prompt, "conversations": TALK}
    assert form_of(record) == "sharegpt" and system(record) == prompt


@pytest.mark.parametrize("aside", ["[]", '[{"a": 1}]', "[[]]", "[1, 2]"])
def test_functions_are_found_behind_other_lists(aside: str) -> None:
    prompt = f"Return {aside} if none. Here is a list of functions: {LIST}. Be brief."
    record = {"system": prompt, "conversations": TALK}
    read = read_record(record)
    assert read.tools is not None and json.loads(read.tools) == json.loads(LIST)
    said = read.messages[0].content or ""
    assert said.startswith(f"Return {aside} if none.") and said.endswith("Be brief.")


def test_instructions_without_their_end_take_nothing_along() -> None:
    prompt = (
        f"{LIST} Should you decide to return the function call(s). Put it so. "
        "Today is Monday, answer in Catalan."
    )
    assert "answer in Catalan" in (
        system({"system": prompt, "conversations": TALK}) or ""
    )


@pytest.mark.parametrize("weight", [0, 0.5, "0"])
def test_a_turn_with_a_weight_of_its_own_is_refused(weight: Any) -> None:
    turns = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "bad", "weight": weight},
    ]
    with pytest.raises(RowError, match="turn 1 has weight"):
        read_record({"messages": turns})
    turns[1]["weight"] = 1
    assert len(read_record({"messages": turns}).messages) == 2


def test_a_parameter_called_properties_is_a_parameter() -> None:
    parameters = {
        "properties": {"type": "str", "description": "which"},
        "n": {"type": "int"},
    }
    tool = {"name": "f", "description": "d", "parameters": parameters}
    record = {
        "query": "q",
        "tools": json.dumps([tool]),
        "answers": json.dumps(
            [{"name": "f", "arguments": {"properties": "all", "n": 1}}]
        ),
    }
    read = read_record(record)
    schema = json.loads(read.tools or "")[0]["function"]["parameters"]
    assert set(schema["properties"]) == {"properties", "n"}
    assert sorted(schema["required"]) == ["n", "properties"]
    record["answers"] = json.dumps([{"name": "f", "arguments": {}}])
    with pytest.raises(RowError, match=r"missing_argument|without"):
        read_record(record)
