"""What docstrings of three styles say: descriptions, types, choices; and defaults of JSON."""

from __future__ import annotations

from typing import Any

import pytest

from alia_ctx.data.chat.making.docstrings import parameter_descriptions, parameter_types
from alia_ctx.data.chat.making.python_source import functions_of_source

GOOGLE = """Do it.

    Args:
        size (`int`, *optional*, defaults to 5):
            How large it is, e.g. The first
            one. More that no model needs.
        mode (`str`, *optional*): How: see [`Mode`].
            - `a`: not a parameter: at all
        names (`List[str]` or `None`):
            Which ones.
        model (`PreTrainedModel`): What is loaded.

    Returns:
        `int`: Nothing.
    """
NUMPY = """Do it.

    Parameters
    ----------
    size : int, optional
        How large it is, e.g. The first
        one. More that no model needs.
    mode : {'a', 'b', None}, optional
        How: see `Mode`.
    names : list of str
        Which ones.
    model : Model
        What is loaded.

    Returns
    -------
    other : int
        Nothing.
    """
SPHINX = """Do it.

    :param size: How large it is, e.g. The first
        one. More that no model needs.
    :type size: int
    :param str mode: How: see :class:`Mode`.
    :param names: Which ones.
    :type names: list of str
    :param model: What is loaded.
    :returns: Nothing.
    """


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, SPHINX])
def test_first_sentences_and_types(docstring: str) -> None:
    told = parameter_descriptions(docstring)
    assert [*told] == ["size", "mode", "names", "model"]
    assert told["size"] == "How large it is, e.g. The first one."
    assert told["names"] == "Which ones." and told["model"] == "What is loaded."
    assert told["mode"].startswith("How: see ") and "Mode" in told["mode"]
    types = parameter_types(docstring)
    assert [*types] == ["size", "mode", "names"]
    assert types["size"] == {"type": "integer"}
    names = {"type": "array", "items": {"type": "string"}}
    if docstring is GOOGLE:
        names = {"anyOf": [names, {"type": "null"}]}
    assert types["names"] == names
    mode = {"enum": ["a", "b", None]} if docstring is NUMPY else {"type": "string"}
    assert types["mode"] == mode


def test_choices_that_python_cannot_parse_are_none() -> None:
    told = f"Parameters\n----------\na : {{{'-' * 100_000}1}}\n    Which.\n"
    assert parameter_types(told) == {}


@pytest.mark.parametrize(
    ("parameter", "schema"),
    [
        (
            "a: Literal['x', 'y', None] = 'x'",
            {"enum": ["x", "y", None], "default": "x"},
        ),
        ("a: Literal[1, 2] = 2", {"type": "integer", "enum": [1, 2], "default": 2}),
        ("a: Literal['x'] = 'z'", {"enum": ["x"]}),
        ("a: list[int] = [1, 2]", {"items": {"type": "integer"}, "default": [1, 2]}),
        ("a: tuple[int, ...] = (1, -2)", {"default": [1, -2]}),
        ("a: dict = {'b': 1}", {"type": "object", "default": {"b": 1}}),
        ("a: dict = {True: (1,)}", {"type": "object", "default": {"true": [1]}}),
        ("a: float = 1", {"type": "number", "default": 1}),
        ("a: int = True", {"type": "integer"}),
        ("a: int = '5'", {"type": "integer"}),
        ("a: float = float('nan')", {"type": "number"}),
        ("a: str = None", {"type": "string"}),
    ],
)
def test_choices_and_defaults_of_annotations(
    parameter: str, schema: dict[str, Any]
) -> None:
    ((_, _, parameters),) = functions_of_source(f'def f({parameter}):\n    """F."""')
    assert isinstance(parameters, dict)
    found = parameters["properties"]["a"]
    assert schema.items() <= found.items()
    assert ("default" in found) == ("default" in schema)


def test_a_docstring_knows_the_types_that_annotations_do_not() -> None:
    text = (
        "def f(size, mode='a', names=None, model=None, *, scale: float = 2.0):\n"
        f'    """{NUMPY}"""'
    )
    ((_, _, parameters),) = functions_of_source(text)
    assert isinstance(parameters, dict)
    assert parameters["required"] == ["size"]
    properties = parameters["properties"]
    assert [*properties] == ["size", "mode", "names", "scale"]
    assert properties["mode"] == {
        "enum": ["a", "b", None],
        "description": "How: see `Mode`.",
        "default": "a",
    }


def test_packages_have_described_parameters_and_choices() -> None:
    """numpy is a dependency of torch's, so it is there."""
    from alia_ctx.data.chat import making

    functions = making.find_functions(["numpy"]).functions
    schemas = [s for f in functions.values() for s in f.properties.values()]
    assert sum("description" in schema for schema in schemas) > 0.7 * len(schemas)
    assert sum("enum" in schema for schema in schemas) > 20
    assert functions["flatnonzero"].required == ["a"]
