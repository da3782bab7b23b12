"""Made conversations: what they are made of, what holds of each, and from where words come."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from alia_ctx.data.chat import making
from alia_ctx.data.chat.forms import read_record
from alia_ctx.data.chat.making.grammar import Grammar
from alia_ctx.data.chat.making.verify import fault_of
from alia_ctx.errors import DataError
from alia_ctx.identity import unsealed

SOURCE = Path(__file__).with_name("functions.py")
OPENAPI = """
openapi: 3.0.0
paths:
  /pets/{petId}:
    parameters:
      - {name: petId, in: path, required: true, schema: {type: integer, minimum: 1}}
    get:
      operationId: showPet
      summary: One pet
    put:
      summary: Change a pet
      requestBody:
        content:
          application/json:
            schema: {$ref: '#/components/schemas/Pet'}
components:
  schemas:
    Pet:
      type: object
      required: [name]
      properties:
        name: {type: string}
        tags: {type: array, items: {type: string}}
        born: {type: string, format: date}
        home: {$ref: '#/components/schemas/Place'}
    Place:
      allOf:
        - {type: object, required: [city], properties: {city: {type: string}}}
        - {type: object, properties: {number: {type: integer, maximum: 9}}}
"""
TOOLS = [
    {"type": "function", "function": {"name": "nested", "description": "d"}},
    {
        "name": "flat",
        "description": "d",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
    {"name": "bad_schema", "description": "d", "parameters": {"type": "dict"}},
    {
        "name": "odd",
        "description": "d",
        "parameters": {"type": "object", "properties": {"n": {"type": "float"}}},
    },
]


def test_functions_of_python_are_read_and_not_imported() -> None:
    found = making.find_functions([str(SOURCE)])
    functions = {name: f.parameters for name, f in found.functions.items()}
    assert set(functions) == {
        *("get_weather", "send_mail", "total", "open_thing", "ping", "untyped")
    } - {"untyped"}
    weather = found.functions["get_weather"]
    assert weather.description == "Forecast for a city."
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city."},
            "days": {
                "type": "integer",
                "description": "How many days ahead.",
                "default": 3,
            },
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
        },
        "required": ["city"],
    }
    mail = functions["send_mail"]["properties"]
    assert mail["to"] == {"type": "string", "description": "Who gets it."}
    assert mail["subject"]["description"] == "What it is about."
    null = {"type": "null"}
    assert mail["urgent"] == {"anyOf": [{"type": "boolean"}, null], "default": None}
    values = {"type": "array", "items": {"type": "number"}}
    assert functions["total"]["properties"] == {
        "values": {**values, "description": "What is added."},
        "weights": {"anyOf": [values, null], "default": None},
    }
    assert set(functions["open_thing"]["properties"]) == {"path", "mode"}
    assert functions["ping"]["properties"] == {}
    reasons = {key.split(": ")[-1]: str(why) for key, why in found.left_out.items()}
    assert reasons == {
        "needs_more": "a parameter has no type of JSON's "
        "(callback is Callable[[int], int])",
        "untyped": "a parameter has no type of JSON's (a has no annotation)",
        "silent": "it has no docstring",
    }


def test_packages_openapi_and_json(tmp_path: Path) -> None:
    assert "is_json" not in making.find_functions(["rich"]).functions
    assert making.find_functions(["typer"]).functions["launch"].required == ["url"]
    api = tmp_path / "api.yaml"
    api.write_text(OPENAPI)
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(TOOLS))
    found = making.find_functions([str(api), str(tools)])
    assert set(found.functions) == {"showPet", "put_pets_petId", "nested", "flat"}
    put = found.functions["put_pets_petId"].parameters
    assert put["required"] == ["petId", "name"]
    assert put["properties"]["home"]["required"] == ["city"]
    assert set(put["properties"]["home"]["properties"]) == {"city", "number"}
    assert len(found.left_out) == 2


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"no": "tool"}', "has no name"),
        ("a.yaml", "openapi: 3.0.0", "has no `paths`"),
        ("a.py", "def f(:", "cannot be read"),
        ("a.py", "x = 1", "no function with a description"),
        ("no_such_package_here", None, "no file, folder or installed package"),
    ],
)
def test_sources_that_are_none(
    name: str, text: str | None, told: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=told):
        making.find_functions([str(path) if text is not None else name])


def all_functions(tmp_path: Path) -> making.FoundFunctions:
    api = tmp_path / "api.yaml"
    api.write_text(OPENAPI)
    return making.find_functions([str(SOURCE), str(api), "typer"])


def leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value if isinstance(value, str) else json.dumps(value)]


def check(record: dict[str, Any]) -> None:
    """What must hold, asked of the written record by other means than the maker's."""
    tools = {t["function"]["name"]: t["function"] for t in json.loads(record["tools"])}
    said, called = "", 0
    for message in record["messages"]:
        if message["role"] == "user":
            said += "\n" + message["content"]
        for made in message.get("tool_calls", []):
            called += 1
            function = tools[made["function"]["name"]]
            arguments = json.loads(made["function"]["arguments"])
            jsonschema.validate(arguments, function["parameters"])
            for leaf in leaves(arguments):
                assert leaf in said
    users = sum(m["role"] == "user" for m in record["messages"])
    first = record["messages"][1]
    match record["kind"]:
        case "single":
            assert (called, len(tools)) == (1, 1)
        case "multiple":
            assert called == 1
            assert len(tools) > 1
        case "parallel":
            assert len(first["tool_calls"]) == called >= 2
        case "missing":
            assert "tool_calls" not in first
            assert called == users - 1
        case "irrelevant":
            assert (called, len(record["messages"])) == (0, 2)
        case "multi_turn":
            assert called == users >= 2
            assert sum(m["role"] == "tool" for m in record["messages"]) == called


def test_every_conversation_is_what_it_is_called(tmp_path: Path) -> None:
    found = all_functions(tmp_path)
    output = tmp_path / "made.jsonl"
    counts = making.make_tool_data(found, making.MakeSpec(count=300, seed=5), output)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(records) == counts.written == 300
    for record in records:
        check(record)
        read_record(record)
    assert Counter(r["kind"] for r in records) == dict.fromkeys(making.KINDS, 50)
    assert Counter(r["language"] for r in records) == dict.fromkeys(
        making.LANGUAGES, 60
    )
    texts = {r["messages"][0]["content"] for r in records}
    assert len(texts) > 250
    made_from, content = unsealed(
        json.loads((tmp_path / "made.jsonl.json").read_text()), "made", "again"
    )
    assert made_from["spec"]["seed"] == 5
    assert content["kinds"] == dict.fromkeys(making.KINDS, 50)


def test_a_seed_is_the_same_bytes(tmp_path: Path) -> None:
    found = all_functions(tmp_path)
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        making.make_tool_data(
            found, making.MakeSpec(count=60, seed=seed), tmp_path / name
        )
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_functions_held_out_are_in_no_training_conversation(tmp_path: Path) -> None:
    found = all_functions(tmp_path)
    names: dict[str, set[str]] = {}
    for part in ("train", "held_out", "all"):
        spec = making.MakeSpec(part=part, held_out_share=0.4)
        names[part] = {function.name for function in spec.of_part(found.functions)}
    assert not names["train"] & names["held_out"]
    assert names["train"] | names["held_out"] == names["all"]
    with pytest.raises(DataError, match="in the part held_out"):
        making.MakeSpec(part="held_out", held_out_share=0).of_part(found.functions)


def test_kinds_that_need_more_functions_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(TOOLS[0]))
    found = making.find_functions([str(path)])
    spec = making.MakeSpec(count=2, kinds=("multiple",))
    with pytest.raises(DataError, match="could not be made"):
        making.make_tool_data(found, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_faults_are_seen(tmp_path: Path) -> None:
    from dataclasses import replace

    from alia_ctx.data.chat.conversation import Conversation, Message

    functions = list(all_functions(tmp_path).functions.values())
    made = next(
        m
        for n in range(50)
        if (m := Grammar(functions, 0).make(n, "single", "en"))
        and m.requests[0].calls[0].arguments
    )
    assert fault_of(made) is None
    turns = list(made.conversation.messages)
    silent = replace(
        made,
        conversation=Conversation(
            (Message("user", "Do it."), *turns[1:]), made.conversation.tools
        ),
    )
    assert "does not say" in (fault_of(silent) or "")
    strict = (made.conversation.tools or "").replace(
        '"properties"', '"not": {}, "properties"'
    )
    unfit = replace(made, conversation=Conversation(tuple(turns), strict))
    assert fault_of(unfit) is not None
