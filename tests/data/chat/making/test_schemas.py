"""Functions of unusual schemas, functions that are alike, and functions that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.data.chat import making
from alia_ctx.errors import DataError


def tools(path: Path, *functions: dict[str, Any]) -> making.FoundFunctions:
    path.write_text(json.dumps(functions))
    return making.find_functions([str(path)])


def function(name: str, properties: Any, **more: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        **more,
    }
    return {"name": name, "description": f"Does {name}.", "parameters": parameters}


def made(path: Path, found: making.FoundFunctions, **spec: Any) -> list[dict[str, Any]]:
    spec = {"count": 10, "kinds": ("single",), "languages": ("en",), **spec}
    making.make_tool_data(found, making.MakeSpec(**spec), path)
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("schema", "more"),
    [
        (True, {}),
        ({"type": "array", "items": True}, {}),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 2.0}, {}),
        ({"type": "array", "minItems": 2.0, "items": {"enum": ["a", "b", "c"]}}, {}),
        ({"type": "string", "minLength": 3.0, "maxLength": 5.0}, {}),
        ({"type": "integer", "minimum": 2.0, "maximum": 9.0, "multipleOf": 2.0}, {}),
        ({"type": "object", "properties": {"x": True}}, {}),
        ({"$ref": "#/$defs/kind"}, {"$defs": {"kind": {"enum": ["red", "blue"]}}}),
    ],
)
def test_schemas_that_are_unusual_and_sound(
    schema: Any, more: dict[str, Any], tmp_path: Path
) -> None:
    found = tools(tmp_path / "t.json", function("f", {"a": schema}, **more))
    assert len(made(tmp_path / "o.jsonl", found)) == 10


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "#/$defs/gone"}, r"\$defs/gone is not there"),
        ({"$ref": "other.json"}, "other.json is not there"),
        ({"type": "array", "items": {"$ref": "#/properties/a"}}, "nested too deeply"),
        ({"type": "string", "pattern": "["}, "no JSON schema"),
    ],
)
def test_schemas_of_no_use_leave_a_function_out(
    schema: Any, why: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=why):
        tools(tmp_path / "t.json", function("f", {"a": schema}))


def test_what_no_value_fits_is_refused_in_words(tmp_path: Path) -> None:
    found = tools(tmp_path / "t.json", function("f", {"a": False}))
    with pytest.raises(DataError, match="a may have no value"):
        made(tmp_path / "o.jsonl", found)
    assert not (tmp_path / "o.jsonl").exists()


def test_no_tool_is_there_that_could_do_what_is_declined(tmp_path: Path) -> None:
    """Tools that are equal but for how they are written, or say the same of themselves."""
    alike = [
        function(name, {"city": {"type": "string"}})
        for name in ("get_weather", "getWeather", "get-weather", "get_weather_now")
    ]
    alike.append({**function("forecast", {}), "description": alike[0]["description"]})
    found = tools(tmp_path / "t.json", *alike, function("send_mail", {}))
    for kind in ("irrelevant", "multiple"):
        for record in made(tmp_path / f"{kind}.jsonl", found, count=60, kinds=(kind,)):
            offered = {t["function"]["name"] for t in json.loads(record["tools"])}
            said = record["messages"][0]["content"].lower()
            weather = offered - {"send_mail", "forecast"}
            if kind == "irrelevant":
                assert not (weather and "weather" in said), record
                assert not ("send_mail" in offered and "send mail" in said)
            else:
                called = record["messages"][1]["tool_calls"][0]["function"]["name"]
                assert called not in weather or len(weather) == 1


def test_invented_functions_are_as_many_and_always_the_same() -> None:
    few, many = (
        making.find_functions([f"invented:{count}"]).functions for count in (50, 90)
    )
    assert [*few] == [*many][:50] and len(many) == 90
    assert all(few[name].tool() == many[name].tool() for name in few)
    for source in (
        "invented:",
        "invented:0",
        "invented:-3",
        "invented:x",
        "invented:1e3",
    ):
        with pytest.raises(DataError, match=r"as invented:2000"):
            making.find_functions([source])


def test_quoted_requests_have_all_their_texts_in_quotation_marks(
    tmp_path: Path,
) -> None:
    found = making.find_functions(["invented:40"])
    limits = making.Limits(quoted=True)
    for record in made(tmp_path / "o.jsonl", found, count=60, limits=limits):
        (call,) = record["messages"][1]["tool_calls"]
        values = json.loads(call["function"]["arguments"]).values()
        for text in [value for value in values if isinstance(value, str)]:
            assert f'"{text}"' in record["messages"][0]["content"]
