"""Python's annotations -> JSON schemas: exactly the values of JSON's that they mean."""

from __future__ import annotations

import ast
from typing import Any

from alia_ctx.data.chat.making.class_schemas import class_schema, enum_members
from alia_ctx.data.chat.making.json_types import (
    NULL,
    Schema,
    array,
    choices,
    constant,
    mapping,
    row,
    union,
)
from alia_ctx.data.chat.making.module_names import ModuleNames
from alia_ctx.data.chat.python_text import expression_of

_PLAIN = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "Path": "string",
    "PurePath": "string",
    "PathLike": "string",
    "StrPath": "string",
    "None": "null",
    "NoneType": "null",
}
_ANYTHING = ("Any", "object")
_MAPPINGS = ("dict", "Dict", "Mapping", "MutableMapping")
_ARRAYS = (
    *("list", "List", "Sequence", "MutableSequence"),
    *("Iterable", "Collection", "Container"),
)
_SETS = (
    *("set", "Set", "frozenset", "FrozenSet"),
    *("AbstractSet", "MutableSet"),
)
_TUPLES = ("tuple", "Tuple")
_UNPACKED = "Unpack"
# Their value is of the type inside.
_WRAPPERS = ("Required", "NotRequired", "ReadOnly", "InitVar")

# What metadata of `Annotated` limits, in the words of annotated_types and of pydantic.
_LIMITS = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}
_LENGTHS = {
    "min_length": ("minLength", "minItems", "minProperties"),
    "max_length": ("maxLength", "maxItems", "maxProperties"),
}
_LENGTHS_OF = {"string": 0, "array": 1, "object": 2}
_METADATA = {
    "Gt": ("gt",),
    "Ge": ("ge",),
    "Lt": ("lt",),
    "Le": ("le",),
    "Interval": (),
    "MultipleOf": ("multiple_of",),
    "MinLen": ("min_length",),
    "MaxLen": ("max_length",),
    "Len": ("min_length", "max_length"),
    "Field": (),
    "StringConstraints": (),
}


class _UnknownError(Exception):
    """What an annotation means is not known, not even in part: it holds itself."""


class Annotations:
    """The annotations of one module."""

    def __init__(self, module: ast.Module | None = None) -> None:
        self._names = ModuleNames(module or ast.Module([], []))

    def schema(self, node: ast.expr | None) -> Schema | None:
        """The JSON schema of an annotation. None for what JSON has no type for, and for
        anything (`Any`) and arrays of it, which say nothing of what is wanted.
        """
        try:
            found = None if node is None else self._of(node, ())
        except (_UnknownError, RecursionError):
            return None
        return None if found in ({}, NULL, {"type": "array"}) else found

    def unpacked(self, node: ast.expr | None) -> Schema | None:
        """The schema of `Unpack[T]`, as `**kwargs` may have it; None of all others."""
        if not isinstance(node, ast.Subscript):
            return None
        is_unpacked = self._names.meaning(node.value) == _UNPACKED
        return self.schema(node.slice) if is_unpacked else None

    def _of(self, node: ast.expr, above: tuple[str, ...]) -> Schema | None:
        """`above`: the aliases and classes that are being read."""
        if isinstance(node, ast.Constant):
            if node.value is None:
                return NULL
            return self._of_text(node.value, above)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return union([self._of(node.left, above), self._of(node.right, above)])
        if isinstance(node, ast.Subscript):
            inside = node.slice
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return self._generic(self._names.meaning(node.value), parts, above)
        name = self._names.meaning(node)
        if name in _PLAIN:
            return {"type": _PLAIN[name]}
        if name in _ANYTHING:
            return {}
        if name in _MAPPINGS:
            return {"type": "object"}
        if name in _SETS:
            return array({}, unique=True)
        if name in (*_ARRAYS, *_TUPLES):
            return array({})
        return self._local(node, above) if self._names.is_local(node) else None

    def _of_text(self, text: Any, above: tuple[str, ...]) -> Schema | None:
        try:
            tree = expression_of(text) if isinstance(text, str) else None
        except (SyntaxError, ValueError, MemoryError):
            return None
        return None if tree is None else self._of(tree.body, above)

    def _local(self, node: ast.expr, above: tuple[str, ...]) -> Schema | None:
        assert isinstance(node, ast.Name)
        if node.id in above:
            raise _UnknownError(node.id)
        above = (*above, node.id)
        if (defined := self._names.classes.get(node.id)) is not None:
            if node.id in self._names.aliases:
                return None  # it is this or that
            return class_schema(defined, self._names, lambda n: self._of(n, above))
        value = self._names.aliases[node.id]
        if isinstance(value, ast.Call):  # Id = NewType("Id", int)
            is_new = self._names.meaning(value.func) == "NewType"
            value = value.args[1] if is_new and len(value.args) == 2 else None
        return None if value is None else self._of(value, above)

    def _generic(
        self, name: str, parts: list[ast.expr], above: tuple[str, ...]
    ) -> Schema | None:
        if name == "Literal":
            return self._choices(parts)
        if name == "Union":
            return union([self._of(part, above) for part in parts])
        if name in _TUPLES:
            return self._tuple(parts, above)
        if name == "Annotated":
            found = self._of(parts[0], above)
            return None if found is None else self._limited(found, parts[1:])
        if name in _MAPPINGS:
            if len(parts) != 2:
                return None
            return mapping(self._of(parts[0], above), self._of(parts[1], above))
        if len(parts) != 1:
            return None
        inside = self._of(parts[0], above)
        if name == "Optional":
            return union([inside, NULL])
        if name in _ARRAYS or name in _SETS:
            return array(inside, unique=name in _SETS)
        if name == "PathLike":
            return inside if inside == {"type": "string"} else None
        return inside if name in _WRAPPERS else None

    def _tuple(self, parts: list[ast.expr], above: tuple[str, ...]) -> Schema | None:
        if not parts:
            return row([])
        *places, last = parts
        if isinstance(last, ast.Constant) and last.value is ...:
            return array(self._of(places[0], above)) if len(places) == 1 else None
        unpacked = last.value if isinstance(last, ast.Starred) else None
        if isinstance(last, ast.Subscript):
            is_unpacked = self._names.meaning(last.value) == _UNPACKED
            unpacked = last.slice if is_unpacked else None
        if unpacked is None:
            return row([self._of(part, above) for part in parts])
        rest = self._of(unpacked, above)
        if rest is None or set(rest) - {"type", "items"}:
            return None
        found = [self._of(part, above) for part in places]
        return row(found, rest.get("items", {}), more=True)

    def _choices(self, parts: list[ast.expr]) -> Schema | None:
        """None where one of them is not known; constants that JSON lacks are none of its."""
        values: list[Any] = []
        for part in parts:
            if isinstance(part, ast.Constant) and isinstance(part.value, bytes):
                continue
            if isinstance(part, ast.Subscript):
                inside = part.slice
                more = inside.elts if isinstance(inside, ast.Tuple) else [inside]
                found = self._choices(more)
                if found is None or self._names.meaning(part.value) != "Literal":
                    return None
                values += found.get("enum", [None])
            elif isinstance(part, ast.Attribute):
                owner = part.value.id if isinstance(part.value, ast.Name) else ""
                owned = self._names.classes.get(owner)
                members = None if owned is None else enum_members(owned, self._names)
                if members is None or part.attr not in members:
                    return None
                values.append(members[part.attr])
            else:
                try:
                    value = constant(part)
                except ValueError:
                    return None
                if isinstance(value, list | dict):
                    return None
                values.append(value)
        return choices(values)

    def _limited(self, schema: Schema, metadata: list[ast.expr]) -> Schema | None:
        """With what metadata that is known limits; None where it is no constant."""
        for node in metadata:
            name = self._names.meaning(node.func) if isinstance(node, ast.Call) else ""
            if not isinstance(node, ast.Call) or name not in _METADATA:
                continue
            given = dict(zip(_METADATA[name], node.args, strict=False))
            given |= {word.arg: word.value for word in node.keywords if word.arg}
            for word, value in given.items():
                try:
                    schema = {**schema, **_limit(word, value, schema)}
                except ValueError:
                    return None
        return schema


def _limit(word: str, value: ast.expr, schema: Schema) -> Schema:
    """What a word of metadata is to a schema; ValueError where its value is not known."""
    if word == "description":
        return {"description": constant(value)}
    if word not in _LIMITS and word not in _LENGTHS:
        return {}
    limit = constant(value)
    if limit is None:
        return {}
    if word in _LIMITS:
        return {_LIMITS[word]: limit}
    kinds = [part.get("type") for part in schema.get("anyOf", [schema])]
    places = {_LENGTHS_OF[kind] for kind in kinds if kind in _LENGTHS_OF}
    return {_LENGTHS[word][place]: limit for place in sorted(places)}
