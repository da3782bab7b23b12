"""What is said of functions that are left out, and of kinds that are never made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.data.chat import making
from alia_ctx.errors import DataError
from alia_ctx.identity import unsealed
from tests.cli.test_chat_commands import alia
from tests.data.chat.making.test_schemas import function, tools

ONE = {"a": {"type": "integer"}}
FUNCTIONS = '''
def total(values: "list[float]"):
    """Sum of values."""

def first(hook: Callable):
    """Calls one."""

def second(hook: bytes, n: int = 1):
    """Calls another."""

def anything(*args, **kwargs):
    """Does anything."""

def silent(a: int):
    pass
'''
API = """
openapi: 3.0.0
paths:
  /pets:
    get: {operationId: total, summary: Counts pets}
    put: {operationId: list_pets, summary: Lists pets}
    post:
      operationId: send
      summary: Sends a pet
      requestBody: {content: {text/plain: {}}}
"""


def lacking(path: Path, found: making.FoundFunctions, **spec: Any) -> dict[str, str]:
    """The cause by kind, of lines that are about one."""
    made = making.MakeSpec(**{"count": 60, "languages": ("en",), **spec})
    lines = making.make_tool_data(found, made, path / "made").lacking(made)
    named = (line.removeprefix("no conversation of ").split(": ", 1) for line in lines)
    return {kind: cause for kind, cause in named}


def test_each_kind_that_is_never_made_has_its_own_cause(tmp_path: Path) -> None:
    required = tools(tmp_path / "t.json", function("f", ONE))
    beside = "two functions are needed, one beside another, and there is one"
    assert lacking(tmp_path, required) == {"multiple": beside, "irrelevant": beside}
    optional = tools(tmp_path / "t.json", function("f", ONE, required=[]))
    assert lacking(tmp_path, optional) == {
        "multiple": beside,
        "irrelevant": beside,
        "missing": "no parameter of any function is required",
    }
    bare = tools(tmp_path / "t.json", function("f", {}))
    assert lacking(tmp_path, bare) == {
        "multiple": beside,
        "irrelevant": beside,
        "missing": "no parameter of any function is required",
        "parallel": "a function has no arguments to tell two calls apart",
    }


def test_two_functions_of_which_one_is_not_enough(tmp_path: Path) -> None:
    alike = [function(name, ONE) for name in ("get_weather", "getWeather")]
    causes = lacking(tmp_path, tools(tmp_path / "t.json", *alike))
    assert [*causes] == ["multiple", "irrelevant"]
    assert all("could be meant too" in cause for cause in causes.values())
    apart = [function(name, ONE) for name in ("get_weather", "send_mail")]
    found = tools(tmp_path / "t.json", *apart)
    assert lacking(tmp_path, found) == {}
    causes = lacking(tmp_path, found, limits=making.Limits(tools=1))
    assert [*causes] == ["multiple", "irrelevant"]
    assert all("--most-tools" in cause for cause in causes.values())


def test_a_count_that_is_too_small_is_the_cause(tmp_path: Path) -> None:
    apart = [function(name, ONE) for name in ("get_weather", "send_mail")]
    found = tools(tmp_path / "t.json", *apart)
    spec = making.MakeSpec(count=20)
    counts = making.make_tool_data(found, spec, tmp_path / "made")
    (line,) = counts.lacking(spec)
    assert "irrelevant, multi_turn" in line and "count of 20 is too small" in line
    assert "makes 30" in line
    spec = making.MakeSpec(count=2, kinds=("single",))
    counts = making.make_tool_data(found, spec, tmp_path / "made")
    (line,) = counts.lacking(spec)
    assert "ca, eu, gl" in line and "makes 5" in line
    spec = making.MakeSpec(count=30)
    assert not making.make_tool_data(found, spec, tmp_path / "made").lacking(spec)


def test_what_could_never_be_made_says_why_of_each_kind(tmp_path: Path) -> None:
    found = tools(tmp_path / "t.json", function("f", ONE, required=[]))
    spec = making.MakeSpec(kinds=("multiple", "missing"))
    with pytest.raises(DataError) as told:
        making.make_tool_data(found, spec, tmp_path / "made")
    assert "multiple: two functions are needed" in str(told.value)
    assert "missing: no parameter of any function is required" in str(told.value)
    assert "model" not in str(told.value)  # none was asked


def test_what_is_left_out_is_told_by_reason_and_kept_by_name(tmp_path: Path) -> None:
    source, api = tmp_path / "own.py", tmp_path / "api.yaml"
    source.write_text(FUNCTIONS)
    api.write_text(API)
    output = tmp_path / "made.jsonl"
    text = alia("make-tool-data", source, api, "--output", output, "--count", 60)
    assert "from 2 functions; 6 left out" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert (
        f"2 left out, a parameter has no type of JSON's, as {source}: first "
        "(hook is Callable)"
    ) in lines
    for line in (
        f"its arguments have no names: {source}: anything (*args)",
        f"it has no docstring: {source}: silent",
        f"another function has this name: {api}: total",
        f"its body is neither JSON nor a form: {api}: send (text/plain)",
    ):
        assert f"1 left out, {line}" in lines
    about = json.loads((tmp_path / "made.jsonl.json").read_text())
    left_out = unsealed(about, "made", "again")[1]["left_out"]
    names = {where.rpartition(": ")[2]: why for where, why in left_out.items()}
    assert names == {
        "first": "a parameter has no type of JSON's (hook is Callable)",
        "second": "a parameter has no type of JSON's (hook is bytes)",
        "anything": "its arguments have no names (*args)",
        "silent": "it has no docstring",
        "total": "another function has this name",
        "send": "its body is neither JSON nor a form (text/plain)",
    }


def test_a_source_without_functions_says_why_of_its_own(tmp_path: Path) -> None:
    source, other = tmp_path / "own.py", tmp_path / "other.py"
    source.write_text(FUNCTIONS)
    other.write_text('def f(*args):\n    """F."""\n')
    with pytest.raises(DataError, match=r"no names: .*other.py: f \(\*args\)") as told:
        making.find_functions([str(source), str(other)])
    assert "own.py" not in str(told.value)


def test_a_name_that_is_left_out_twice_is_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    found = tools(path, *[function("f", ONE), function("f", {}), function("f", {})])
    assert [*found.left_out] == [f"{path}: f", f"{path}: f (2)"]


def test_a_mistyped_address_leaves_nothing_that_is_in_the_way(tmp_path: Path) -> None:
    found = tools(tmp_path / "t.json", function("f", ONE))
    spec, output = making.MakeSpec(count=1, kinds=("single",)), tmp_path / "made"
    with pytest.raises(DataError, match="no http or https address"):
        making.make_tool_data(
            found, spec, output, endpoint=making.Endpoint("nowhere", "m")
        )
    assert not [*tmp_path.glob("made*")]
    for port in (9, 1):  # nobody listens; the second is no other work than the first
        with pytest.raises(DataError, match="does not answer"):
            making.make_tool_data(
                found,
                spec,
                output,
                endpoint=making.Endpoint(f"http://127.0.0.1:{port}", "m"),
            )
