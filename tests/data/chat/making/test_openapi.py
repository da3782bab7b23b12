"""OpenAPI documents as people write them: which operations can be called, and why others
cannot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from alia_ctx.data.chat import making

FIELDS = {"to": {"type": "string"}, "count": {"type": "integer"}}
OBJECT = {"type": "object", "properties": FIELDS, "required": ["to"]}


def operation(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"requestBody": {"required": True, "content": body}}
    return {"operationId": "send", "summary": "Sends a letter", **body, **more}


def found(
    tmp_path: Path, changed: dict[str, Any] | None, text: str = ""
) -> making.FoundFunctions:
    """Of a document with the operation, and another that is sound."""
    sound = {"operationId": "list_all", "summary": "Lists all letters"}
    paths = {"/letters": {"get": sound}, "/send": {"post": changed}}
    path = tmp_path / "api.yaml"
    path.write_text(
        text or yaml.safe_dump({"openapi": "3.0.0", "paths": paths}), encoding="utf-8"
    )
    return making.find_functions([str(path)])


@pytest.mark.parametrize(
    "kind",
    [
        *("application/json", "application/json; charset=utf-8", "APPLICATION/JSON"),
        *("application/vnd.api+json", "application/merge-patch+json", "*/*"),
        *("application/x-www-form-urlencoded", "multipart/form-data"),
    ],
)
def test_bodies_with_named_fields_are_arguments(kind: str, tmp_path: Path) -> None:
    body = {"application/xml": {"schema": OBJECT}, kind: {"schema": OBJECT}}
    functions = found(tmp_path, operation(body)).functions
    assert functions["send"].parameters["properties"] == FIELDS
    assert functions["send"].required == ["to"]


LIST = {"type": "array", "items": OBJECT}
FILE = {"type": "object", "properties": {"f": {"type": "string", "format": "binary"}}}
NESTED = {"type": "object", "properties": {"o": OBJECT}}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"application/json": {"schema": LIST}}, "no object with named fields"),
        ({"application/json": {"schema": {"type": "string"}}}, "no object with named"),
        ({"application/json": {"schema": {"type": "object"}}}, "no object with named"),
        ({"application/json": {}}, "no object with named fields"),
        ({"application/json": {"schema": {"oneOf": [OBJECT, LIST]}}}, "no object with"),
        (
            {"text/plain": {"schema": {"type": "string"}}},
            "neither JSON nor a form (text/plain)",
        ),
        ({"application/octet-stream": {}}, "neither JSON nor a form"),
        (
            {"multipart/form-data": {"schema": FILE}},
            "a field of its form is no simple value (f)",
        ),
        (
            {"multipart/form-data": {"schema": NESTED}},
            "a field of its form is no simple value (o)",
        ),
        ({"application/x-www-form-urlencoded": {"schema": LIST}}, "no object with nam"),
        ({"application/json": "yes"}, "it is not as OpenAPI has it"),
        ([1, 2], "neither JSON nor a form"),
    ],
)
def test_bodies_without_are_left_out_with_their_reason(
    body: Any, why: str, tmp_path: Path
) -> None:
    told = found(tmp_path, operation(body))
    assert list(told.functions) == ["list_all"]
    [(where, reason)] = told.left_out.items()
    assert where.endswith("api.yaml: send") and why in str(reason)


def test_a_body_of_version_2(tmp_path: Path) -> None:
    body = {"in": "body", "name": "body", "schema": LIST}
    told = found(tmp_path, operation({}, parameters=[body]))
    assert "send" not in told.functions and len(told.left_out) == 1
    body["schema"] = OBJECT
    assert found(tmp_path, operation({}, parameters=[body])).functions["send"].required


def query(schema: str) -> str:
    return (
        "openapi: 3.0.0\npaths:\n  /a:\n    get: {operationId: list_all, summary: Lists}\n"
        "  /b:\n    get:\n      operationId: send\n      summary: Sends a letter\n"
        f"      parameters: [{{name: a, in: query, required: true, schema: {schema}}}]\n"
    )


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("{type: number, default: .nan}", "no JSON"),
        ("{type: number, maximum: 1.0e+400}", "no JSON"),
        ("{type: number, enum: [.inf]}", "no JSON"),
        ("{type: string, default: !!binary aGk=}", "no JSON"),
        ("{type: string, default: !!set {a}}", "no JSON"),
        ("{type: object, properties: {200: {type: string}}}", "no JSON"),
        ("{type: object, required: 7}", None),
        ("{type: string, minLength: many}", "no JSON schema"),
        ("{type: number, exclusiveMinimum: true, minimum: 1}", None),
        ("{type: array, items: [{type: string}]}", None),
        ("[1]", None),
    ],
)
def test_what_json_has_no_form_for_leaves_its_function_out(
    schema: str, why: str | None, tmp_path: Path
) -> None:
    told = found(tmp_path, None, query(schema))
    assert "list_all" in told.functions
    if why is not None:
        assert why in str(told.left_out[f"{tmp_path}/api.yaml: send"])
    made = making.make_tool_data(
        told, making.MakeSpec(4, kinds=("single",)), tmp_path / "made"
    )
    assert made.written == 4


@pytest.mark.parametrize(
    "schema",
    [
        "{type: string, format: date, default: 2024-01-01}",
        "{type: string, enum: [2024-01-01, 2025-06-01T10:00:00Z]}",
    ],
)
def test_dates_are_text_as_in_json(schema: str, tmp_path: Path) -> None:
    told = found(tmp_path, None, query(schema))
    assert not told.left_out
    spec = making.MakeSpec(20, kinds=("single",), languages=("en",))
    assert making.make_tool_data(told, spec, tmp_path / "made").written == 20
    records = [
        json.loads(line) for line in (tmp_path / "made").read_text().splitlines()
    ]
    calls = [
        call for r in records for m in r["messages"] for call in m.get("tool_calls", [])
    ]
    assert any("20" in call["function"]["arguments"] for call in calls)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "minimum": -1.7e308, "maximum": 1.7e308},
        {"type": "integer", "minimum": 10**300},
        {"type": "string", "minLength": 10**9},
        {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    ],
)
def test_limits_that_no_value_is_made_for(schema: Any, tmp_path: Path) -> None:
    parameters = {"type": "object", "properties": {"a": schema}}
    tools = [{"name": "f", "description": "Does f.", "parameters": parameters}]
    (tmp_path / "t.json").write_text(json.dumps(tools))
    told = making.find_functions([str(tmp_path / "t.json")])
    spec = making.MakeSpec(5, kinds=("single",), languages=("en",))
    assert making.make_tool_data(told, spec, tmp_path / "made").written == 5


FEW = {"type": "array", "items": {"enum": [1, 2]}}
DISTINCT, MANY = {**FEW, "minItems": 2, "uniqueItems": True}, {**FEW, "minItems": 5}
PLACES = {
    "type": "array",
    "prefixItems": [{"type": "integer"}, {"type": "boolean"}],
    "minItems": 2,
}
NUMBERS = {"type": "object", "additionalProperties": {"type": "integer"}}


@pytest.mark.parametrize(
    ("schema", "meant"),
    [
        ({**NUMBERS, "minProperties": 2}, {**NUMBERS, "minProperties": 2}),
        (PLACES, PLACES),
        (DISTINCT, DISTINCT),
        (MANY, MANY),
        (
            {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 0.5},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        ),
        (
            {"type": "integer", "exclusiveMaximum": -4, "multipleOf": 3},
            {"type": "integer", "exclusiveMaximum": -4, "multipleOf": 3},
        ),
        (
            {"type": "integer", "minimum": 3, "anyOf": [{"maximum": 4}]},
            {"enum": [3, 4]},
        ),
        ({"type": "string", "nullable": True, "enum": ["a"]}, {"enum": ["a", None]}),
        ({"type": ["integer", "null"]}, {"type": ["integer", "null"]}),
        ({"const": 7}, {"enum": [7]}),
    ],
)
def test_what_a_schema_says_is_kept_and_values_are_of_it(
    schema: Any, meant: Any, tmp_path: Path
) -> None:
    told = found(tmp_path, None, query(json.dumps(schema)))
    parameter = told.functions["send"].properties["a"]
    ours, theirs = Draft202012Validator(parameter), Draft202012Validator(meant)
    for value in (
        None,
        7,
        3,
        "a",
        "b",
        0,
        0.5,
        -6,
        [1, 2],
        [1, True],
        [1, 1],
        {"a": 1},
    ):
        assert ours.is_valid(value) == theirs.is_valid(value), value
    only = making.FoundFunctions({"send": told.functions["send"]})
    spec = making.MakeSpec(40, kinds=("single",), languages=("en",))
    assert not making.make_tool_data(only, spec, tmp_path / "made").refused
    for line in (tmp_path / "made").read_text().splitlines():
        (call,) = json.loads(line)["messages"][1]["tool_calls"]
        theirs.validate(json.loads(call["function"]["arguments"])["a"])


def test_a_body_that_may_be_null_has_named_fields(tmp_path: Path) -> None:
    body = {"application/json": {"schema": {**OBJECT, "nullable": True}}}
    assert found(tmp_path, operation(body)).functions["send"].required == ["to"]
