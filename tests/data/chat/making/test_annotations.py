"""Schemas of annotations, and calls made of them, beside what pydantic and Python's own
`inspect.signature` say of the same functions.
"""

from __future__ import annotations

import inspect
import itertools
import json
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from alia_ctx.data.chat import making
from alia_ctx.data.chat.making.python_source import functions_of_source
from alia_ctx.errors import DataError

pydantic = pytest.importorskip("pydantic")

HEAD = """
import collections.abc
import enum
import typing as t
from dataclasses import dataclass, field
from pathlib import Path
from typing import *
from typing import Annotated, Any, Callable, Literal, NotRequired, Optional, Required
from typing import TypedDict, Union
from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen, MultipleOf
from pydantic import Field

class Colour(enum.Enum):
    RED = "red"
    BLUE = "b"
    ALSO = "red"

class Level(enum.IntEnum):
    LOW = 1
    HIGH = 5

class Mode(enum.StrEnum):
    FAST = enum.auto()
    SLOW = "x"

class Point(TypedDict):
    x: float
    y: NotRequired[float]

class Spot(Point, total=False):
    z: Required["int | None"]
    label: str

@dataclass
class Base:
    a: int

@dataclass(kw_only=True)
class Box(Base):
    b: "str" = "x"
    hidden: ClassVar[int] = 3
    made: list[int] = field(default_factory=list)

Pair = tuple[int, int]
Name: TypeAlias = str
type Count = int
Id = NewType("Id", int)

"""

ANNOTATIONS = [
    *("int", "str", "float", "bool", "Path", "dict", "dict[str, Any]"),
    *("tuple[int, int]", "tuple[int, str]", "tuple[int, ...]", "tuple[()]"),
    *("tuple[float, float, float, float, float]", "Tuple[int, str]", "t.Tuple[int]"),
    *("tuple[str, Optional[int]]", "tuple[list[int], ...]"),
    *("Union[int, str]", "int | str", "str | int | None", "Optional[int]"),
    *("Optional[Union[int, list[str]]]", "Union[int, Union[str, bool]]"),
    *("int | list[int]", "list[int | str]", "float | Literal['a']", "None | int"),
    *("Union[list, int]", "int | float", "dict[str, int] | list[int]"),
    *("Literal['a', 'b']", "Literal[1, 'a']", "Literal[1, 'a', None, True]"),
    *("Literal[-1, 5]", "Literal[Literal['a'], 1]", "Literal[True]", "Literal['int']"),
    *("Optional[Literal['a', 'b']]", "Literal[None, 1] | str"),
    *("list[tuple[float, float]]", "dict[str, list[int]]", "list[dict[str, int]]"),
    *("dict[str, int]", "Dict[str, float | None]", "Mapping[str, tuple[int, int]]"),
    *("dict[Literal['a', 'b'], int]", "collections.abc.Mapping[str, str]"),
    *("set[int]", "frozenset[str]", "Set[Literal['a', 'b']]", "t.AbstractSet[int]"),
    *("collections.abc.Sequence[int]", "list['int']", "'list[int]'", "'int | None'"),
    *("Annotated[int, 'told']", "Annotated[int, Ge(1), Lt(5)]"),
    *("Annotated[float, Gt(0), Le(1)]", "Annotated[str, MinLen(1), MaxLen(2)]"),
    *("Annotated[list[int], Len(2, 3)]", "Annotated[int, Field(ge=1, le=5)]"),
    *("Annotated[str | None, Field(max_length=1)]", "list[Annotated[int, Gt(0)]]"),
    *("Annotated[int, MultipleOf(5)]", "Optional[Annotated[float, Lt(-1)]]"),
    *("Colour", "Level", "Mode", "Colour | None", "list[Level]"),
    *("Point", "Spot", "list[Point]", "Point | str", "Box", "Optional[Box]"),
    *("Pair", "list[Pair]", "Name", "Count | Name", "Id", "dict[Name, Id]"),
]
WORDS = ["", "a", "b", "x", "red", "fast", "FAST", "1", "long text"]
NUMBERS = [-5, -1, 0, 1, 2, 5, 10, 0.5, -1.5, 3.25]
SCALARS: list[Any] = [None, True, False, *WORDS, *NUMBERS]
INSIDE: list[Any] = [None, True, 0, 1, 5, 0.5, "a", "red", [1], [1, 2], {"a": 1}]
PROBES: list[Any] = [
    *SCALARS,
    *([list(v) for n in range(3) for v in itertools.product(INSIDE, repeat=n)]),
    *([list(v) for v in itertools.product([1, 2.5, "a"], repeat=3)]),
    *([0.5] * 5, [1, 2, 3, 4, 5], [[0.5, 1.5], [1, 2]], [[1, 2], [1, 2, 3]]),
    *({}, *({k: v} for k in ("a", "b", "x", "z", "1", "label") for v in INSIDE)),
    *({"a": [1, 2, 3], "b": []}, {"x": 1.5, "y": 2}, {"x": 1, "y": None}),
    *({"x": 1, "z": None}, {"x": 1, "z": 2, "label": "a"}, {"x": 1, "z": 2, "more": 3}),
    *(
        {"a": 1, "b": "x"},
        {"a": 1, "b": 2},
        {"a": 1, "made": [1]},
        {"a": 1, "hidden": 1},
    ),
    *({"a": 1, "b": "x", "made": []}, [{"x": 1}], [{"a": {}}]),
]


def module_of(source: str) -> types.ModuleType:
    """The source as Python runs it, with dataclasses that take no more than they name."""
    module = types.ModuleType("annotated_functions")
    sys.modules[module.__name__] = module  # where typed dictionaries look names up
    exec(compile(source, "<source>", "exec", dont_inherit=True), vars(module))
    for name in ("Base", "Box"):
        if name in vars(module):
            vars(module)[name].__pydantic_config__ = {"extra": "forbid"}
    return module


def adapters(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: pydantic.TypeAdapter(hint) for name, hint in hints.items()}


def schema_of(source: str, name: str = "f") -> Any:
    return next(
        schema for found, _, schema in functions_of_source(source) if found == name
    )


def is_read(adapter: Any, value: Any) -> bool:
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError:
        return False
    return True


def test_the_probes_tell_annotations_apart() -> None:
    schemas = [
        Draft202012Validator(
            schema_of(f'{HEAD}def f(a: {one}):\n "F."')["properties"]["a"]
        )
        for one in ("int", "float", "tuple[int, int]", "int | str", "Point", "Box")
    ]
    valid = {tuple(map(schema.is_valid, PROBES)) for schema in schemas}
    assert len(valid) == len(schemas)


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_schemas_are_valid_for_what_annotations_mean(annotation: str) -> None:
    source = f'from __future__ import annotations\n{HEAD}def f(a: {annotation}):\n "F."'
    adapter = adapters(module_of(source).f)["a"]
    schema = schema_of(source)["properties"]["a"]
    Draft202012Validator.check_schema(schema)
    ours, theirs = (
        Draft202012Validator(one) for one in (schema, adapter.json_schema())
    )
    is_set, has_choices = "et[" in annotation, "enum" in str(schema)
    for probe in PROBES:
        valid = ours.is_valid(probe)
        assert valid == theirs.is_valid(probe), (probe, schema)
        # Only pydantic's schemas say that a set has no value twice, and that a truth is
        # none of the choices 0 and 1; its readers take them, as Python does.
        twice = is_set and isinstance(probe, list) and not valid
        truth = has_choices and any(word in str(probe) for word in ("True", "1", "0"))
        if not (twice or truth):
            assert valid == is_read(adapter, probe), (probe, schema)


@pytest.mark.parametrize(
    ("annotation", "valid", "invalid"),
    [
        ("tuple[int, *tuple[str, ...]]", [[1], [1, "a", "b"]], [[], ["a"], [1, 2]]),
        ("tuple[int, Unpack[tuple[str, ...]]]", [[1], [1, "a"]], [[], [1, 2]]),
        ("Literal[Colour.RED, 1]", ["red", 1], ["b", True, "RED"]),
        ("Late", [{"a": 1}], [{"a": 1, "inner": 2}, {}, {"inner": 1}]),
    ],
)
def test_schemas_of_what_pydantic_does_not_read(
    annotation: str, valid: list[Any], invalid: list[Any]
) -> None:
    late = "@dataclass\nclass Late:\n    a: int\n    inner: int = field(init=False)\n"
    source = f'{HEAD}{late}def f(a: {annotation}):\n    """F."""\n'
    validator = Draft202012Validator(schema_of(source)["properties"]["a"])
    assert [value for value in valid if not validator.is_valid(value)] == []
    assert [value for value in invalid if validator.is_valid(value)] == []


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_made_calls_are_of_the_signature(annotation: str, tmp_path: Path) -> None:
    source = f'{HEAD}def f(a: {annotation}, n: int = 1):\n    """F."""\n'
    path = tmp_path / "module.py"
    path.write_text(source)
    function = module_of(source).f
    read = adapters(function)
    spec = making.MakeSpec(20, kinds=("single",), languages=("en", "eu"))
    found = making.find_functions([str(path)])
    if annotation in ("dict", "dict[str, Any]"):  # nobody knows what to say in it
        with pytest.raises(DataError, match="an object without properties"):
            making.make_tool_data(found, spec, tmp_path / "made")
        return
    making.make_tool_data(found, spec, tmp_path / "made")
    for line in (tmp_path / "made").read_text().splitlines():
        (call,) = json.loads(line)["messages"][1]["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        inspect.signature(function).bind(**arguments)
        assert all(is_read(read[name], value) for name, value in arguments.items())


@pytest.mark.parametrize(
    ("annotation", "kinds"),
    [
        ("int | str", {int, str}),
        ("Union[bool, list[int], None]", {bool, list}),
        ("Literal[1, 'a', None]", {int, str}),
        ("Optional[Point | float]", {dict, float}),
        ("dict[str, int] | int", {dict, int}),
        ("Literal[None, 1.5] | tuple[int, int]", {list}),
    ],
)
def test_values_are_of_each_alternative(
    annotation: str, kinds: set[type], tmp_path: Path
) -> None:
    path = tmp_path / "module.py"
    path.write_text(f'{HEAD}def f(a: {annotation}):\n    """F."""\n')
    found = making.find_functions([str(path)])
    spec = making.MakeSpec(80, kinds=("single",), languages=("en",))
    making.make_tool_data(found, spec, tmp_path / "made")
    calls = [
        json.loads(line)["messages"][1]["tool_calls"][0]["function"]["arguments"]
        for line in (tmp_path / "made").read_text().splitlines()
    ]
    drawn = {type(json.loads(call)["a"]) for call in calls}
    assert drawn == kinds or drawn == kinds | {float}


def test_names_of_free_objects_are_said(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    text = 'def f(a: dict[str, list[str]], b: dict[Literal["maxPrice", "b"], int]):\n'
    path.write_text(f'{HEAD}{text}    """F."""\n')
    spec = making.MakeSpec(60, kinds=("single",))
    found = making.find_functions([str(path)])
    counts = making.make_tool_data(found, spec, tmp_path / "made")
    assert not counts.refused
    names = set()
    for line in (tmp_path / "made").read_text().splitlines():
        said, turn = json.loads(line)["messages"][:2]
        arguments = json.loads(turn["tool_calls"][0]["function"]["arguments"])
        for value in arguments.values():
            assert all(name in said["content"] for name in value)
            names |= set(value)
    assert len(names) > 10 and "maxPrice" in names
