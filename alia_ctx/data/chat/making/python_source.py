"""Python's source -> signatures: docstring and annotations, read from the syntax tree."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any

from alia_ctx.data.chat.making.annotations import Annotations
from alia_ctx.data.chat.making.docstrings import (
    parameter_descriptions,
    parameter_types,
)
from alia_ctx.data.chat.making.json_types import Schema, union, with_default
from alia_ctx.data.chat.making.left_out import Reason
from alia_ctx.data.chat.python_text import tree_of

Signature = tuple[str, str, "Schema | Reason"]
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions_of_source(text: str) -> Iterator[Signature]:
    """(name, description, JSON schema of the parameters) of the public functions at the
    top of a module; the reason in place of the schema where one has no docstring, where a
    parameter that is needed has no type of JSON's, in its annotation or, without one, in
    the docstring, where arguments cannot be given by name, and where the module gives the
    name to something else later. SyntaxError where it is no Python.
    """
    tree = tree_of(text)
    annotations = Annotations(tree)
    last = {name: node for node in tree.body for name in _names_given(node)}
    for node in tree.body:
        if not isinstance(node, _Function) or node.name.startswith("_"):
            continue
        docstring = ast.get_docstring(node)
        if last[node.name] is not node:
            yield node.name, "", Reason("its module has its name again further down")
        elif not docstring:
            yield node.name, "", Reason("it has no docstring")
        else:
            parameters = _parameters(node, docstring, annotations)
            yield node.name, _summary(docstring), parameters


def _names_given(node: ast.stmt) -> Iterator[str]:
    """The names that stand for something else behind a statement, whatever happens: what
    is made of the old value (`f = cache(f)`) is called as it was.
    """
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name
        case ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            for alias in names:
                yield alias.asname or alias.name.partition(".")[0]
        case ast.Assign() | ast.AnnAssign(value=ast.expr()) | ast.Delete():
            parts = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
            read = {part.id for part in parts if isinstance(part.ctx, ast.Load)}
            given = (part.id for part in parts if not isinstance(part.ctx, ast.Load))
            yield from (name for name in given if name not in read)


def _parameters(
    node: _Function, docstring: str, annotations: Annotations
) -> Schema | Reason:
    told, types = parameter_descriptions(docstring), parameter_types(docstring)
    properties: dict[str, Any] = {}
    required = []
    for argument, default in _by_name(node):
        schema = annotations.schema(argument.annotation)
        if argument.annotation is None:  # then the docstring may know
            schema = types.get(argument.arg)
        elif schema is not None:
            schema = _with_choices(schema, types.get(argument.arg))
        if schema is None:
            if default is None:
                return _without_type(argument)
            continue  # it keeps its default
        if argument.arg in told:
            schema = {**schema, "description": told[argument.arg]}
        if default is None:
            required.append(argument.arg)
        else:
            schema = with_default(schema, default)
        properties[argument.arg] = schema
    more: Schema = {}
    if (rest := node.args.kwarg) is not None:
        unpacked = annotations.unpacked(rest.annotation)
        if unpacked is not None and unpacked.get("properties"):
            properties |= unpacked["properties"]
            required += unpacked["required"]
        elif schema := annotations.schema(rest.annotation):
            more = {"additionalProperties": schema}
    if (reason := _nameless(node)) is not None:
        return reason
    if rest is not None and not properties:
        return Reason("its arguments have no names", f"**{rest.arg} alone")
    return {"type": "object", "properties": properties, "required": required, **more}


def _by_name(node: _Function) -> list[tuple[ast.arg, ast.expr | None]]:
    """The parameters that arguments can be given to by name, with their defaults."""
    inside = node.args
    positional = [*inside.posonlyargs, *inside.args]
    defaults = [*([None] * (len(positional) - len(inside.defaults))), *inside.defaults]
    pairs = [*zip(positional, defaults, strict=True)]
    return [
        *pairs[len(inside.posonlyargs) :],
        *zip(inside.kwonlyargs, inside.kw_defaults, strict=True),
    ]


def _nameless(node: _Function) -> Reason | None:
    """Calls of JSON's give arguments by name. A parameter that takes them by place alone
    keeps its default, if it has one.
    """
    inside = node.args
    if inside.vararg is not None:
        return Reason("its arguments have no names", f"*{inside.vararg.arg}")
    optional = max(0, len(inside.defaults) - len(inside.args))
    needed = inside.posonlyargs[: len(inside.posonlyargs) - optional]
    if needed:
        return Reason("an argument is given by its place alone", needed[0].arg)
    return None


def _without_type(argument: ast.arg) -> Reason:
    told = "has no annotation"
    if argument.annotation is not None:
        told = ast.unparse(argument.annotation)
        told = f"is {told if len(told) < 80 else f'{told[:79]}…'}"
    return Reason("a parameter has no type of JSON's", f"{argument.arg} {told}")


def _with_choices(schema: Schema, told: Schema | None) -> Schema:
    """With the choices of the docstring in the place of the bare type that they are of."""
    if told is None or "enum" not in told:
        return schema
    options = [value for value in told["enum"] if value is not None]
    if "type" in told:
        bare = {"type": told["type"]}
    elif {type(value) for value in options} == {str}:  # texts, or None
        bare = {"type": "string"}
    else:
        return schema
    parts = schema.get("anyOf", [schema]) if set(schema) <= {"anyOf", "type"} else []
    if bare not in parts:
        return schema
    chosen = {**bare, "enum": options}
    return union([chosen if part == bare else part for part in parts]) or schema


def _summary(docstring: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
