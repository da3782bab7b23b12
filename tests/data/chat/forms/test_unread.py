"""Tools, prompts, documents and pictures under names that no reader knows are not lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alia_ctx.data.chat import ChatConversion
from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import read_record

TOOL = {
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
}
NESTED = {"type": "function", "function": TOOL}
TURNS = [
    {"role": "user", "content": "Who won?"},
    {"role": "assistant", "content": "No tool."},
]
KWARGS = {
    "custom_instructions": "",
    "enable_thinking": False,
    "python_tools": [],
    "xml_tools": [],
    "reasoning_effort": "low",
}
PROMPT = "Answer in Catalan."


def refusal(reason: str, **beside: Any) -> str:
    with pytest.raises(RowError) as refused:
        read_record({"messages": TURNS, **beside})
    assert refused.value.reason == reason
    return refused.value.detail


@pytest.mark.parametrize(
    "column", ["tool_definitions", "available_functions", "what_it_has"]
)
@pytest.mark.parametrize(
    "tools",
    [
        [NESTED],
        json.dumps([TOOL]),
        [json.dumps(NESTED)],
        repr([TOOL]),
        {"f": TOOL},
        [{"name": "f", "input_schema": TOOL["parameters"]}],
        [{"name": "f", "description": "d", "parameters": {}}],
    ],
)
def test_tools_are_known_by_their_shape(column: str, tools: Any) -> None:
    assert column in refusal("unread_column", **{column: tools})
    told = refusal("unread_column", metadata={column: tools})
    assert told.startswith(f"metadata.{column}")
    turns = [{**TURNS[0], column: tools}, TURNS[1]]
    assert f"turn 0: {column}" in refusal("unread_column", messages=turns)
    assert column in refusal(
        "unread_column", messages=json.dumps(TURNS), **{column: tools}
    )


@pytest.mark.parametrize(
    "column", ["instructions", "developer", "system_message", "systemPrompt"]
)
def test_a_prompt_under_another_name_is_not_lost(column: str) -> None:
    assert column in refusal("unread_column", **{column: PROMPT})
    head = {"role": "system", "content": f"{PROMPT} Be brief."}
    read_record({"messages": [head, *TURNS], column: PROMPT})
    read_record({"messages": TURNS, column: " "})


@pytest.mark.parametrize(
    "shown",
    [
        {"custom_instructions": PROMPT},
        {"xml_tools": [json.dumps(TOOL)]},
        {"python_tools": ["def f(a: str): ..."]},
        {"tools": [NESTED]},
        {"documents": [{"title": "t", "text": "x"}]},
    ],
)
def test_what_a_set_gives_its_own_template_is_not_lost(
    shown: Any, tmp_path: Path
) -> None:
    given = {**KWARGS, **shown}
    [key] = shown
    for value in (given, json.dumps(given)):
        told = refusal("unread_column", chat_template_kwargs=value)
        assert told.startswith(f"chat_template_kwargs.{key} ")
    read_record({"messages": TURNS, "chat_template_kwargs": KWARGS})
    rows = [{"messages": TURNS, "chat_template_kwargs": one} for one in (given, KWARGS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows)
    )
    for name in ("rows.parquet", "rows.jsonl"):
        conversion = ChatConversion([str(tmp_path / name)])
        assert len([*conversion.conversations()]) == 1
        assert conversion.counts.left_out == {"unread_column": 1}


def test_documents_and_pictures_are_not_lost() -> None:
    documents = [{"title": "t", "text": "The cup of 1998 went to France."}]
    assert "documents" in refusal("unread_column", documents=documents)
    asked = {"role": "user", "content": f"{documents[0]['text']} Who won?"}
    read_record({"messages": [asked, TURNS[1]], "documents": documents})
    several = [*documents, {"title": "u", "text": "And in 2002?"}]
    refusal("unread_column", messages=[asked, TURNS[1]], documents=several)
    refusal("unread_column", documents=[{"title": "t", "text": "x"}])
    assert "images" in refusal("content_not_text", images=["a.png"])
    turns = [{**TURNS[0], "images": ["a.png"]}, TURNS[1]]
    assert "turn 0: images" in refusal("content_not_text", messages=turns)
    for nothing in (None, [], [{"bytes": None, "path": None}]):
        read_record({"messages": TURNS, "images": nothing})


@pytest.mark.parametrize(
    "beside",
    [
        {"source": "x", "score": 0.5, "id": 3, "tags": ["a"], "language": "ca"},
        {"metadata": {"tools": [], "model": "m", "tool_count": 3}},
        {"metadata": '{"not": "whole"'},
        {"expected": [{"name": "f", "parameters": {"a": "x"}}]},
        {
            "expected": json.dumps(
                [{"function": {"name": "f", "arguments": {"a": "x"}}}]
            )
        },
        {"people": [{"name": "Ada", "description": "who wrote it"}]},
        {"instruction": "Who won?", "output": "No tool."},
        {"text": f"<tools>{json.dumps([TOOL])}</tools> Who won?"},
        {"orig_tools": [json.dumps(TOOL)], "tools": []},
    ],
)
def test_what_only_describes_a_row_stays_beside(beside: dict[str, Any]) -> None:
    assert read_record({"messages": TURNS, **beside}).tools is None


def test_lists_beside_tools_that_are_read() -> None:
    read = {"tools": [TOOL], "messages": TURNS}
    other = {**TOOL, "name": "g"}
    for beside in (
        {"tool_definitions": [NESTED]},
        {"chat_template_kwargs": {"tools": json.dumps([TOOL])}},
        {"metadata": json.dumps({"server": {"tools": [TOOL, other]}})},  # Toucan's
        {"tool_list": ["f"]},
    ):
        assert read_record({**read, **beside}, "openai").tools is not None
    for beside in (
        {"tool_definitions": [other]},
        {"chat_template_kwargs": {"tools": [TOOL, other]}},
    ):
        with pytest.raises(RowError, match="unread_column"):
            read_record({**read, **beside}, "openai")


def test_a_prompt_as_it_was_before_its_tools_were_read_is_no_other() -> None:
    prompt = f"Be brief.\n<tools>\n{json.dumps([TOOL])}\n</tools>"
    turns = [{"role": "system", "content": prompt}, *TURNS]
    assert read_record({"messages": turns, "system_message": prompt}).tools is not None


@pytest.mark.parametrize("key", ["thinking", "reasoning", "reasoning_details"])
def test_reasoning_in_parts_is_no_text(key: str) -> None:
    parts = [{"type": "text", "text": "hm"}]
    refusal("content_not_text", messages=[TURNS[0], {**TURNS[1], key: parts}])
    said = {**TURNS[1], key: parts, "reasoning_content": "hm"}
    assert read_record({"messages": [TURNS[0], said]}).messages[1].reasoning == "hm"
    for nothing in ([], None, True):
        read = read_record({"messages": [TURNS[0], {**TURNS[1], key: nothing}]})
        assert read.messages[1].reasoning is None


def test_a_column_that_python_cannot_hold_and_nobody_reads_is_no_fault(
    tmp_path: Path,
) -> None:
    table = pa.table(
        {
            "messages": pa.array([json.dumps(TURNS)]),
            "note": pa.Array.from_buffers(
                pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers()
            ),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    assert len([*ChatConversion([str(tmp_path / "rows.parquet")]).conversations()]) == 1
