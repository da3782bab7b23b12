"""Functions that would be offered and never called: they are left out, or told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.data.chat import making
from alia_ctx.errors import DataError
from alia_ctx.identity import unsealed
from tests.cli.test_chat_commands import alia
from tests.data.chat.making.test_schemas import function, made, tools

ONE = {"type": "integer"}
DEEP = {"type": "array", "items": {"type": "array", "items": {"type": "array"}}}
HASH = "^(?=.*#)(?=.*%)x$"
# Schemas that are sound, and of which no value is made or can be.
IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "deep": (DEEP, "nested too deeply"),
    "pattern": ({"type": "string", "pattern": "^(a+)+$"}, "has the form"),
    "lookahead": ({"type": "string", "pattern": HASH}, "has the form"),
    "nothing": ({"not": {}}, "a: "),
    "both": ({"allOf": [{"type": "string"}, ONE]}, "is not of type"),
    "no choice": ({"enum": []}, "a has no choice"),
    "another type": ({"type": "integer", "enum": ["x", "y"]}, "is not of type"),
    "text": ({"type": "string", "minLength": 5, "maxLength": 3}, "is too long"),
    "number": ({"type": "number", "minimum": 5, "maximum": 4}, "has no limits"),
    "integer": ({"type": "integer", "minimum": 5, "maximum": 4}, "has no limits"),
    "step": (
        {**ONE, "multipleOf": 7, "exclusiveMinimum": 0, "exclusiveMaximum": 7},
        "has no limits",
    ),
    "many": ({"type": "array", "items": ONE, "minItems": 13}, "with 13 parts"),
    "few": (
        {"type": "array", "items": {"enum": [1]}, "minItems": 2, "uniqueItems": True},
        "too short",
    ),
    "between": (
        {"type": "array", "items": ONE, "minItems": 3, "maxItems": 2},
        "is too ",
    ),
    "object": (
        {"type": "object", "properties": {"x": False, "y": ONE}, "required": ["x"]},
        "x may have no value",
    ),
    "names": (
        {
            "type": "object",
            "additionalProperties": ONE,
            "propertyNames": {"enum": [1, 2]},
        },
        "a is an object of",
    ),
    "choice of a tag": ({"enum": ["</tool_call>", ["<tools>"]]}, "</tool_call>"),
    "constant tag": ({"const": {"x": "a <tool_response> b"}}, "<tool_response>"),
    "tag as a key": (
        {"type": "object", "properties": {"</tools>": ONE}},
        "a has </tools> in it",
    ),
}
CASES = pytest.mark.parametrize(
    ("schema", "why"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys()
)


def names_of(records: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """What is offered, and what is called."""
    offered = {
        tool["function"]["name"]
        for record in records
        for tool in json.loads(record["tools"])
    }
    called = {
        call["function"]["name"]
        for record in records
        for message in record["messages"]
        for call in message.get("tool_calls", [])
    }
    return offered, called


def about(output: Path) -> dict[str, Any]:
    written = json.loads(output.with_name(f"{output.name}.json").read_text())
    content: dict[str, Any] = unsealed(written, "made", "again")[1]
    return content


@CASES
def test_what_cannot_be_called_is_not_offered(
    schema: Any, why: str, tmp_path: Path
) -> None:
    good = [function(name, {"n": ONE}) for name in ("count_sheep", "send_mail")]
    source, output = tmp_path / "t.json", tmp_path / "o.jsonl"
    found = tools(source, function("of_no_use", {"a": schema, "n": ONE}), *good)
    records = made(output, found, count=48, kinds=making.KINDS)
    assert names_of(records) == ({"count_sheep", "send_mail"},) * 2
    told = about(output)["left_out"][f"{source}: of_no_use"]
    assert told.startswith("no call of it can be made (") and why in told


@CASES
def test_a_parameter_that_is_not_needed_is_left_out_alone(
    schema: Any, why: str, tmp_path: Path
) -> None:
    """And no conversation is refused for it."""
    properties = {"a": schema, "b": ONE, "c": ONE}
    found = tools(tmp_path / "t.json", function("f", properties, required=["b"]))
    spec = making.MakeSpec(count=30, kinds=("single",))
    counts = making.make_tool_data(found, spec, tmp_path / "o.jsonl")
    assert not counts.left_out and not counts.refused
    text = (tmp_path / "o.jsonl").read_text()
    given = [
        json.loads(call["function"]["arguments"])
        for record in map(json.loads, text.splitlines())
        for call in record["messages"][1]["tool_calls"]
    ]
    assert {key for arguments in given for key in arguments} == {"b", "c"}


def test_of_an_object_the_properties_that_can_be_made_are_there(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"x": False, "y": ONE}}
    found = tools(tmp_path / "t.json", function("f", {"a": schema}))
    for record in made(tmp_path / "o.jsonl", found):
        (call,) = record["messages"][1]["tool_calls"]
        assert {*json.loads(call["function"]["arguments"])["a"]} == {"y"}


def test_choices_that_are_tags_are_not_drawn(tmp_path: Path) -> None:
    enum = ["</tool_call>", "warm", "a <tool_call>", "[TOOL_CALLS]", "cold"]
    found = tools(tmp_path / "t.json", function("f", {"a": {"enum": enum}}))
    values = {
        json.loads(record["messages"][1]["tool_calls"][0]["function"]["arguments"])["a"]
        for record in made(tmp_path / "o.jsonl", found, count=40)
    }
    assert values == {"warm", "cold"}


@pytest.mark.parametrize(
    "name", ["</tool_call>", "get<tool_call>", "<tools>", "<functioncall>"]
)
def test_a_function_that_is_named_as_a_tag_is_none(name: str, tmp_path: Path) -> None:
    good, source = function("count_sheep", {"n": ONE}), tmp_path / "t.json"
    found = tools(source, function(name, {"n": ONE}), good)
    assert [*found.functions] == ["count_sheep"]
    told = str(found.left_out[f"{source}: {name}"])
    assert told.startswith("its name has a tag of calls in it")
    with pytest.raises(DataError, match="its name has a tag of calls in it"):
        tools(source, function(name, {"n": ONE}))


def test_what_needs_more_arguments_than_calls_may_have(tmp_path: Path) -> None:
    many = function("send_mail", {key: ONE for key in "abc"})
    source, output = tmp_path / "t.json", tmp_path / "o.jsonl"
    found = tools(source, many, function("count_sheep", {"n": ONE}))
    records = made(output, found, limits=making.Limits(arguments=2))
    assert names_of(records) == ({"count_sheep"},) * 2
    told = about(output)["left_out"][f"{source}: send_mail"]
    assert told == "a call of it needs more arguments than --most-arguments (3)"
    assert made(output, found) != records and not about(output)["left_out"]
    invented = making.find_functions(["invented:60"])
    for record in made(
        output,
        invented,
        count=60,
        kinds=("multiple",),
        limits=making.Limits(arguments=1),
    ):
        for tool in json.loads(record["tools"]):
            assert len(tool["function"]["parameters"].get("required", [])) < 2


def test_a_text_that_seldom_fits_is_no_reason(tmp_path: Path) -> None:
    """One in ten of the texts that are drawn ends so."""
    pattern = {"type": "string", "pattern": r"^(?=.*[a-z])(?=.*\d{3}).*7$"}
    found = tools(tmp_path / "t.json", function("f", {"title": pattern}))
    (record,) = made(tmp_path / "o.jsonl", found, count=1)
    (call,) = record["messages"][1]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["title"].endswith("7")


def test_where_none_can_be_called_all_reasons_are_told(tmp_path: Path) -> None:
    source, output = tmp_path / "t.json", tmp_path / "o.jsonl"
    bad = [function("f", {"a": DEEP}), function("g", {key: ONE for key in "abcdefgh"})]
    with pytest.raises(DataError, match="no call could be made of 2 functions") as told:
        made(output, tools(source, *bad))
    assert f"no call of it can be made: {source}: f (" in str(told.value)
    assert f"than --most-arguments: {source}: g (8)" in str(told.value)
    assert not output.exists()


def test_what_is_never_called_by_chance_is_told(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    text = alia("make-tool-data", "invented:40", "--output", output, "--count", 60)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    offered, called = names_of(records)
    told = about(output)["never_called"]
    assert {*told["names"]} == offered - called
    assert told["count"] == len(told["names"]) == len(offered - called) > 0
    (line,) = [line for line in text.splitlines() if "never called" in line]
    assert f"{told['count']} of {len(offered)} functions that are offered" in line
    assert told["names"][0] in line


def test_where_each_is_called_nothing_is_told(tmp_path: Path) -> None:
    good = [function(name, {"n": ONE}) for name in ("count_sheep", "send_mail")]
    source, output = tmp_path / "t.json", tmp_path / "o.jsonl"
    tools(source, *good)
    text = alia("make-tool-data", source, "--output", output, "--count", 60)
    assert "never called" not in text
    assert about(output)["never_called"] == {"count": 0, "names": []}
