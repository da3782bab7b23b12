"""Python's source -> signatures: docstring and annotations, read from the syntax tree."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

from alia_ctx.data.chat.python_text import expression_of, tree_of

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
    parameter that is needed has no type of JSON's. SyntaxError where it is no Python.
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
    told = parameter_descriptions(docstring)
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
        if schema is None:
            if default is None:
                return f"the parameter {argument.arg} has no type of JSON's"
            continue  # it keeps its default
        if argument.arg in told:
            schema["description"] = told[argument.arg]
        if default is None:
            required.append(argument.arg)
        elif (value := _constant(default)) is not None:
            schema["default"] = value
        properties[argument.arg] = schema
    return {"type": "object", "properties": properties, "required": required}


def _constant(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str | int | float | bool) else None


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
            texts = len(values) == len(parts) and all(
                isinstance(v, str) for v in values
            )
            return {"type": "string", "enum": values} if texts else None
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


_SPHINX = re.compile(r"^:param (?:[\w\[\], .|]+ )?(\w+):[ \t]*(.+)$", re.MULTILINE)
_GOOGLE = re.compile(r"^\s{2,}\*{0,2}(\w+)(?: ?\([^)]*\))?:[ \t]+(\S.*)$")
_NUMPY = re.compile(r"^(\w+)\s*:\s*\S.*$")
_HEADS = ("Args:", "Arguments:", "Parameters:")


def parameter_descriptions(docstring: str) -> dict[str, str]:
    """Descriptions by parameter, of docstrings as Sphinx, Google and NumPy write them;
    their first lines.
    """
    text = inspect.cleandoc(docstring)
    told = {name: words.strip() for name, words in _SPHINX.findall(text)}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.strip() in _HEADS:
            for after in lines[number + 1 :]:
                if after.strip() and not after.startswith(" "):
                    break
                if match := _GOOGLE.match(after):
                    told.setdefault(match[1], match[2].strip())
        underlined = number and set(line.strip()) == {"-"}
        if underlined and lines[number - 1].strip() == "Parameters":
            told |= _numpy(lines[number + 1 :])
    return told


def _numpy(lines: list[str]) -> dict[str, str]:
    told: dict[str, str] = {}
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if set(line.strip()) == {"-"}:
            break
        if (match := _NUMPY.match(line)) and after.startswith(" "):
            told.setdefault(match[1], after.strip())
    return told
