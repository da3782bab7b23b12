"""Which parameters of a signature arguments are made for, and why a function is left out."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from alia_ctx.data.chat.making import find_functions
from tests.data.chat.making.test_annotations import HEAD, module_of, schema_of


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        ("*args, **kwargs", "no names (*args)"),
        ("*values: float", "no names (*values)"),
        ("a: int, *rest: str", "no names (*rest)"),
        ("**kwargs", "no names (**kwargs alone)"),
        ("**kwargs: int", "no names (**kwargs alone)"),
        ("a: int, /", "by its place alone (a)"),
        ("a: int, b: int = 1, /, c: int = 2", "by its place alone (a)"),
        ("a: Any", "no type of JSON's (a is Any)"),
        ("a: list", "no type of JSON's (a is list)"),
        ("a: Any | int", "no type of JSON's"),
        ("a", "no type of JSON's (a has no annotation)"),
        ("a: bytes", "no type of JSON's (a is bytes)"),
        ("a: dict[int, str]", "no type of JSON's"),
        ("a: list[bytes]", "no type of JSON's"),
        ("a: tuple[int, bytes]", "no type of JSON's"),
        ("a: list[int, str]", "no type of JSON's"),
        ("a: None", "no type of JSON's"),
        ("a: Callable[[int], int] | None", "no type of JSON's"),
        ("a: Tree", "no type of JSON's"),
        ("a: Tree | int", "no type of JSON's"),
        ("a: Odd", "no type of JSON's"),
        ("a: Flags", "no type of JSON's"),
        ("a: Mine", "no type of JSON's"),
        ("a: Or", "no type of JSON's"),
        ("a: click.Path", "no type of JSON's"),
        ("a: Dict", "no type of JSON's"),
        ("a: Annotated[int, Gt(LIMIT)]", "no type of JSON's"),
        ("a: 'int['", "no type of JSON's"),
        ("a: Raw", "no type of JSON's"),
    ],
)
def test_functions_that_json_cannot_call_are_left_out(signature: str, why: str) -> None:
    source = f"""
from typing import Annotated, Any, Callable, TypedDict
from annotated_types import Gt
import enum
import click
from ast import Dict
LIMIT = 5
class Tree(TypedDict):
    children: list["Tree"]
class Odd(enum.Enum):
    A = object()
class Flags(enum.Flag):
    A = 1
class Mine:
    a: int
class Raw(TypedDict):
    data: bytes
if LIMIT:
    Or = int
else:
    Or = str
def f({signature}):
    '''F.'''
"""
    assert why in str(schema_of(source))


@pytest.mark.parametrize(
    ("signature", "properties"),
    [
        ("a: int = 1, b: int = 2, /, c: int = 3", ["c"]),
        ("a: int, *, b: str = 'x'", ["a", "b"]),
        ("*, b: str", ["b"]),
        ("a: int, tz: bytes = b'', hook: Callable = print", ["a"]),
        ("a: int, **more: str", ["a"]),
        ("**more: Unpack[Point]", ["x", "y"]),
    ],
)
def test_arguments_that_have_names(signature: str, properties: list[str]) -> None:
    source = f"{HEAD}from typing import Unpack\ndef f({signature}):\n    '''F.'''\n"
    schema = schema_of(source)
    assert [*schema["properties"]] == properties
    signature_of = inspect.signature(module_of(source).f)
    named = {name: 1 for name in schema["required"]}
    signature_of.bind(**named)
    if "more: str" in signature:
        assert schema["additionalProperties"] == {"type": "string"}


@pytest.mark.parametrize(
    ("parameter", "default"),
    [
        ("a: tuple[int, int] = (1, 2)", [1, 2]),
        ("a: tuple[int, int] = (1, 2, 3)", ...),
        ("a: int | None = None", None),
        ("a: int = None", ...),
        ("a: int | str = 'x'", "x"),
        ("a: int | str = 1.5", ...),
        ("a: dict[str, int] = {'b': 'x'}", ...),
        ("a: set[int] = {1}", ...),
        ("a: int = LIMIT", ...),
        ("a: float = 1e999", ...),
        ("a: bytes | str = b'x'", ...),
        ("a: Colour = Colour.RED", ...),
        ("a: Literal['x', 1] = True", ...),
    ],
)
def test_defaults_are_those_that_json_has(parameter: str, default: Any) -> None:
    schema = schema_of(f'{HEAD}LIMIT = 5\ndef f({parameter}):\n    """F."""\n')
    assert schema["required"] == []
    assert schema["properties"]["a"].get("default", ...) == default


def test_a_union_loses_only_what_is_none_of_jsons() -> None:
    source = f'{HEAD}import numpy as np\ndef f(a: "int | np.ndarray | Callable"): "F."'
    assert schema_of(source)["properties"]["a"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("words", "valid", "invalid"),
    [
        ("int or str", [1, "a"], [0.5, None, [1]]),
        ("int or None", [1, None], ["a"]),
        ("tuple[int, int], optional", [[1, 2]], [[1], [1, 2, 3], ["a", 1]]),
        ("dict[str, int | str]", [{"a": 1}, {"a": "b"}], [{"a": []}, 1]),
        ("{'a', 1, None}", ["a", 1, None], ["b", True]),
        ("list of int or float", [[1], 0.5], [["a"], "a"]),
    ],
)
def test_types_in_words_mean_all_that_they_say(
    words: str, valid: list[Any], invalid: list[Any]
) -> None:
    told = f"F.\n\n    Parameters\n    ----------\n    a : {words}\n        A.\n    "
    schema = schema_of(f'def f(a):\n    """{told}"""\n')["properties"]["a"]
    validator = Draft202012Validator(schema)
    assert [value for value in valid if not validator.is_valid(value)] == []
    assert [value for value in invalid if validator.is_valid(value)] == []


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        ("", "integer"),
        ('def f(x: str):\n    """F."""', "string"),
        ('def f(x: str):\n    """F."""\ndef f(x: bool):\n    """F."""', "boolean"),
        ('async def f(x: str):\n    """F."""', "string"),
        ("f = functools.cache(f)", "integer"),
        ("g, h = f, f", "integer"),
        ("f: Callable", "integer"),
        ("try:\n    from _fast import f\nexcept ImportError:\n    pass", "integer"),
        ("def f(x):\n    pass", None),
        ("f = None", None),
        ("f: int = 3", None),
        ("g, (f, h) = 1, (2, 3)", None),
        ("class f: pass", None),
        ("from other import g as f", None),
        ("import f.g", None),
        ("del f", None),
    ],
)
def test_the_last_definition_of_a_name_is_the_function(
    below: str, kind: str | None, tmp_path: Path
) -> None:
    source = tmp_path / "own.py"
    source.write_text(
        f'def f(x: int):\n    """F."""\n{below}\ndef other():\n    """O."""\n'
    )
    found = find_functions([str(source)])
    assert [*found.functions] == (["other"] if kind is None else ["f", "other"])
    if kind is not None:
        assert found.functions["f"].properties == {"x": {"type": kind}}
    told = [str(why) for why in found.left_out.values()]
    assert (told == []) == (kind == "integer")
    assert kind == "integer" or "its module has its name again further down" in told
