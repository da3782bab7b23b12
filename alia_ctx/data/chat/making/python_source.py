"""Python's source -> signatures: docstring and annotations, read from the syntax tree."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from typing import Any

from alia_ctx.data.chat.making.docstrings import (
    choices,
    parameter_descriptions,
    parameter_types,
)
from alia_ctx.data.chat.python_text import expression_of, tree_of
from alia_ctx.files import parse_json

_PLAIN = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "dict": "object",
    "Dict": "object",
    "Mapping": "object",
    "Path": "string",
    "PathLike": "string",
    "StrPath": "string",
}
_ARRAYS = ("list", "List", "Sequence", "Iterable", "Collection", "set", "Set", "tuple")
_UNIONS = ("Optional", "Union")

Signature = tuple[str, str, "dict[str, Any] | str"]


def functions_of_source(text: str) -> Iterator[Signature]:
    """(name, description, JSON schema of the parameters) of the public functions at the
    top of a module that have a docstring; the reason in place of the schema where a
    parameter that is needed has no type of JSON's, in its annotation or, without one, in
    the docstring. SyntaxError where it is no Python.
    """
    for node in tree_of(text).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if node.name.startswith("_") or not docstring:
            continue
        yield node.name, _summary(docstring), _parameters(node, docstring)


def _parameters(
    node: ast.FunctionDef | ast.AsyncFunctionDef, docstring: str
) -> dict[str, Any] | str:
    told, types = parameter_descriptions(docstring), parameter_types(docstring)
    properties: dict[str, Any] = {}
    required = []
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (
        len(positional) - len(node.args.defaults)
    )
    pairs = [
        *zip(positional, [*defaults, *node.args.defaults], strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        schema = json_type(argument.annotation)
        if argument.annotation is None:  # then the docstring may know
            schema = types.get(argument.arg)
        elif schema == {"type": types.get(argument.arg, {}).get("type")}:
            schema = types[argument.arg]  # it may know of choices too
        if schema is None:
            if default is None:
                return f"the parameter {argument.arg} has no type of JSON's"
            continue  # it keeps its default
        if argument.arg in told:
            schema["description"] = told[argument.arg]
        if default is None:
            required.append(argument.arg)
        elif (value := _constant(default)) is not None and _is_of(value, schema):
            schema["default"] = value
        properties[argument.arg] = schema
    return {"type": "object", "properties": properties, "required": required}


def _constant(node: ast.expr) -> Any:
    """The default's value as JSON has it, with lists for tuples and texts for keys; None
    where JSON has none.
    """
    try:
        return parse_json(json.dumps(ast.literal_eval(node), allow_nan=False))
    except (ValueError, SyntaxError, TypeError, RecursionError):  # nested too deeply
        return None


_OF_TYPE: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def _is_of(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a default is of its parameter's type: the first of several stands for all."""
    kind, options = schema.get("type"), schema.get("enum")
    fits = kind in _OF_TYPE and isinstance(value, _OF_TYPE[kind])
    if isinstance(value, bool) and kind != "boolean":
        return False
    return fits and (options is None or value in options)


def json_type(node: ast.expr | None) -> dict[str, Any] | None:
    """The JSON schema of an annotation, None for what JSON has no type for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return json_type(expression_of(node.value).body)
        except SyntaxError:
            return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _first_of([node.left, node.right])
    if isinstance(node, ast.Subscript):
        name, inside = _name(node.value), node.slice
        parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        if name in _UNIONS:
            return _first_of(parts)
        if name == "Literal":
            values = [part.value for part in parts if isinstance(part, ast.Constant)]
            return choices(values) if len(values) == len(parts) else None
        if name in _ARRAYS:
            same = {ast.dump(p) for p in parts if not _is_ellipsis(p)}
            items = json_type(parts[0]) if len(same) == 1 else None
            return None if items is None else {"type": "array", "items": items}
        if name in ("Annotated", "PathLike"):
            return json_type(parts[0])
        return {"type": "object"} if _PLAIN.get(name) == "object" else None
    kind = _PLAIN.get(_name(node))
    return None if kind is None else {"type": kind}


def _first_of(parts: list[ast.expr]) -> dict[str, Any] | None:
    """The first alternative that JSON has a type for; None itself is none."""
    types = (json_type(part) for part in parts)
    return next((kind for kind in types if kind is not None), None)


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _name(node: ast.expr | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _summary(docstring: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
