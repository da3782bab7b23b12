"""What xLAM says of parameters is in the JSON schema that becomes of it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from alia_ctx.data.chat.forms import read_record
from alia_ctx.data.chat.forms.xlam import read_type


@pytest.mark.parametrize(
    ("words", "schema", "optional"),
    [
        ("str", {"type": "string"}, False),
        ("int, optional", {"type": "integer"}, True),
        ("int,optional", {"type": "integer"}, True),
        ("bool (optional)", {"type": "boolean"}, True),
        ("int | None", {"type": "integer"}, True),
        ("None|str", {"type": "string"}, True),
        ("Union[int, None]", {"type": "integer"}, True),
        ("int | str", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, False),
        (
            "Dict[str, int | None]",
            {
                "type": "object",
                "additionalProperties": {
                    "anyOf": [{"type": "integer"}, {"type": "null"}]
                },
            },
            False,
        ),
        ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}, False),
        (
            "Literal['a or b', 'c|d,e']",
            {"type": "string", "enum": ["a or b", "c|d,e"]},
            False,
        ),
        ("Literal[1, 2, None], optional", {"enum": [1, 2]}, True),
        ("Optional[Literal['a']]", {"type": "string", "enum": ["a"]}, True),
        ("int or float", {"anyOf": [{"type": "integer"}, {"type": "number"}]}, False),
        ("str (ISO 8601)", {"type": "string"}, False),
        ("str (ISO 8601), optional", {"type": "string"}, True),
        ("int | datetime", {}, False),
        ("", {}, False),
        ("List[str]", {"type": "array", "items": {"type": "string"}}, False),
        (
            "List[List[int]], optional",
            {
                "type": "array",
                "items": {"type": "array", "items": {"type": "integer"}},
            },
            True,
        ),
        (
            "Dict[str, List[int]], optional",
            {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "integer"}},
            },
            True,
        ),
        ("Tuple[float, float]", {"type": "array", "items": {"type": "number"}}, False),
        ("Tuple[float, str]", {"type": "array"}, False),
        ("Optional[str]", {"type": "string"}, True),
        (
            "Union[int, List[float]]",
            {
                "anyOf": [
                    {"type": "integer"},
                    {"type": "array", "items": {"type": "number"}},
                ]
            },
            False,
        ),
        ("Callable[[float], float]", {}, False),
        ("set", {"type": "array"}, False),
    ],
)
def test_types_of_xlam(words: str, schema: dict[str, Any], optional: bool) -> None:
    read = read_type(words)
    assert (read.schema, read.optional) == (schema, optional)


def xlam(parameters: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a tool's parameters."""
    tools = [{"name": "f", "description": "d", "parameters": parameters}]
    answers = [{"name": "f", "arguments": {"a": 1, "n": 1, "properties": 1}}]
    record = {"query": "q", "answers": json.dumps(answers), "tools": json.dumps(tools)}
    [tool] = read_record(record).tools_for_template() or []
    return dict(tool["function"]["parameters"])


def test_several_types_of_xlam_stay() -> None:
    about = {"type": ["integer", "null"], "description": "x"}
    for kind, required in ((["integer", "null"], []), (["int", "str"], ["n"])):
        schema = xlam({"n": {**about, "type": kind}})
        kinds = {"int": "integer", "str": "string"}
        told = {"type": [kinds.get(k, k) for k in kind], "description": "x"}
        assert schema == {
            "type": "object",
            "properties": {"n": told},
            "required": required,
        }


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("str (ISO 8601)", "x (type: str (ISO 8601))"),
        ("Callable[[float], float]", "x (type: Callable[[float], float])"),
        ("Callable, optional", "x (type: Callable, optional)"),
        ("datetime | int", "x (type: datetime | int)"),
        ("Tuple[int, str]", "x (type: Tuple[int, str])"),
        ("Dict[int, str]", "x (type: Dict[int, str])"),
        ("List[datetime]", "x (type: List[datetime])"),
        ("str, e.g. 'a'", "x (type: str, e.g. 'a')"),
        (["int", "datetime"], "x (type: int | datetime)"),
        ("np.ndarray", "x (type: np.ndarray)"),
        ("Literal[a, b]", "x (type: Literal[a, b])"),
        *((k, "x") for k in ("int or float", "Literal['a']", "Dict[str, List[int]]")),
        *((k, "x") for k in ("int, optional", "Optional[int]", "Tuple[int, ...]")),
    ],
)
def test_a_type_that_no_schema_has_is_told(kind: Any, told: str) -> None:
    schema = xlam({"n": {"type": kind, "description": "x"}})
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["n"]["description"] == told
    alone = xlam({"n": {"type": kind}})["properties"]["n"]
    assert alone.get("description", "") == told[2:]


@pytest.mark.parametrize(
    ("about", "required"),
    [
        ({"required": True, "default": 1}, ["n"]),
        ({"required": False}, []),
        ({"optional": True}, []),
        ({"optional": False, "type": "int, optional"}, ["n"]),
    ],
)
def test_a_parameter_may_say_itself_that_it_is_required(
    about: dict[str, Any], required: list[str]
) -> None:
    rest = {"type": "int", "description": "x", **about}
    for parameters in ({"n": rest}, {"type": "dict", "properties": {"n": rest}}):
        schema = xlam(parameters)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert not {"required", "optional"} & {*schema["properties"]["n"]}
        if parameters.keys() == {"n"} or "required" in about:
            assert schema["required"] == required


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("enum", "a or b", "enum: a or b"),
        ("minimum", "0", "minimum: 0"),
        ("items", [1], "items: [1]"),
    ],
)
def test_keys_that_break_a_schema_are_told(key: str, value: Any, told: str) -> None:
    schema = xlam({"n": {"type": "int", "description": "x", key: value, "enum_of": 3}})
    jsonschema.Draft202012Validator.check_schema(schema)
    about = schema["properties"]["n"]
    assert about == {"type": "integer", "description": f"x ({told})", "enum_of": 3}


def test_schemas_of_xlam_are_known_without_a_type() -> None:
    a = {"a": {"type": "string"}}
    for more in ({}, {"required": ["a"]}, {"description": "d", "title": "t"}):
        schema = {"properties": a, **more}
        assert xlam(schema) == {"type": "object", **schema}
    # and a parameter of that name is one
    for about in ({"type": "dict", "description": "x"}, {"description": "x"}):
        properties = xlam({"properties": about})["properties"]
        assert list(properties) == ["properties"]
    assert list(xlam({"properties": a, "n": {"type": "int"}})["properties"]) == [
        "properties",
        "n",
    ]


def test_a_default_of_xlam_makes_a_parameter_optional() -> None:
    tools = [{"name": "f", "parameters": {"a": {"type": "str", "default": "x"}}}]
    record = {
        "query": "q",
        "tools": json.dumps(tools),
        "answers": '[{"name": "f", "arguments": {}}]',
    }
    function = read_record(record).tools_for_template()[0]["function"]  # type: ignore[index]
    assert function["parameters"]["required"] == []
    assert function["parameters"]["properties"]["a"]["default"] == "x"
