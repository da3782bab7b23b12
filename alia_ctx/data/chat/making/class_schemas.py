"""Classes of a Python module whose values JSON has a form for: enumerations, typed
dictionaries, dataclasses.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from alia_ctx.data.chat.making.json_types import (
    Schema,
    choices,
    constant,
    with_default,
)
from alia_ctx.data.chat.making.module_names import ModuleNames
from alia_ctx.data.chat.python_text import expression_of

SchemaOf = Callable[[ast.expr], "Schema | None"]
_ENUMS: dict[str, type | None] = {"Enum": None, "IntEnum": int, "StrEnum": str}
_MIXED_IN: dict[str, type] = {"str": str, "int": int}
# Bases that add no fields.
_PLAIN_BASES = ("object", "Generic")


@dataclass(frozen=True)
class _Field:
    """`default` is None where there is none of one constant."""

    name: str
    annotation: ast.expr
    required: bool
    default: ast.expr | None = None


def class_schema(
    node: ast.ClassDef, names: ModuleNames, schema_of: SchemaOf
) -> Schema | None:
    """The schema of a class's values, `schema_of` of its fields: an enumeration is one of
    its values, a dataclass and a typed dictionary an object. None of other classes, and of
    those that something changes which is not seen here.
    """
    if (members := enum_members(node, names)) is not None:
        return choices([*members.values()])
    fields = _typed_dict(node, names)
    is_open = fields is not None  # a typed dictionary may have more keys
    if fields is None:
        fields = _dataclass(node, names)
    if fields is None:
        return None
    properties: dict[str, Schema] = {}
    for field in fields.values():
        schema = schema_of(field.annotation)
        if schema is None:
            if field.required or is_open:
                return None
            continue  # it keeps its default
        if field.default is not None:
            schema = with_default(schema, field.default)
        properties[field.name] = schema
    required = [field.name for field in fields.values() if field.required]
    closed = {} if is_open else {"additionalProperties": False}
    return {"type": "object", "properties": properties, "required": required, **closed}


def enum_members(
    node: ast.ClassDef, names: ModuleNames, below: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """Values of JSON's by member; None where it is no enumeration of such."""
    bases = _enum_bases(node, names, below)
    if bases is None:
        return None
    members: dict[str, Any] = {}
    for name, value in _assigned(node):
        if name.startswith("_") and name.endswith("_"):
            continue
        is_auto = isinstance(value, ast.Call) and names.meaning(value.func) == "auto"
        try:
            found = name.lower() if is_auto and "StrEnum" in bases else constant(value)
        except ValueError:
            return None
        wanted = [kind for base in bases if (kind := _kind_of_base(base)) is not None]
        if isinstance(found, list | dict) or any(type(found) is not k for k in wanted):
            return None
        members[name] = found
    return members


def _kind_of_base(base: str) -> type | None:
    return _ENUMS.get(base) or _MIXED_IN.get(base)


def _enum_bases(
    node: ast.ClassDef, names: ModuleNames, below: tuple[str, ...]
) -> set[str] | None:
    """The known bases, also those of a base in the same module; None where it is no
    enumeration, has another base, or makes its values itself.
    """
    if node.name in below or node.keywords or _defines(node, "__new__", "__init__"):
        return None
    found: set[str] = set()
    for base in node.bases:
        name = names.meaning(base)
        if name in _ENUMS or name in _MIXED_IN:
            found.add(name)
            continue
        parent = _local_class(base, names)
        if parent is None:
            return None
        inherited = _enum_bases(parent, names, (*below, node.name))
        if inherited is None or enum_members(parent, names, below):
            return None
        found |= inherited
    return found if found & set(_ENUMS) else None


def _assigned(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Names of a body with their values; what has none of its own, a name or a type, which
    is no constant.
    """
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        value = statement.value if part is target else part
                        yield part.id, value
        elif isinstance(statement, ast.AnnAssign) and isinstance(
            statement.target, ast.Name
        ):
            yield statement.target.id, statement.value or statement.annotation


def _typed_dict(
    node: ast.ClassDef, names: ModuleNames, below: tuple[str, ...] = ()
) -> dict[str, _Field] | None:
    if node.name in below or any(word.arg != "total" for word in node.keywords):
        return None
    total = all(_is_true(word.value) for word in node.keywords)
    fields: dict[str, _Field] = {}
    for base in node.bases:
        name = names.meaning(base)
        if name in ("TypedDict", *_PLAIN_BASES):
            continue
        parent = _local_class(base, names)
        inherited = (
            None if parent is None else _typed_dict(parent, names, (*below, node.name))
        )
        if inherited is None:
            return None
        fields |= inherited
    if not node.bases:
        return None
    for name, annotation, _ in _annotated(node):
        required = _is_required(annotation, names, total)
        fields[name] = _Field(name, annotation, required)
    return fields


def _is_required(node: ast.expr, names: ModuleNames, total: bool) -> bool:
    """By the innermost of `Required[...]` and `NotRequired[...]`, or else by `total`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            node = expression_of(node.value).body
        except (SyntaxError, ValueError, MemoryError):
            return total
    if not isinstance(node, ast.Subscript):
        return total
    name = names.meaning(node.value)
    if name in ("Required", "NotRequired"):
        return name == "Required"
    if name not in ("Annotated", "ReadOnly"):
        return total
    inside = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
    return _is_required(inside, names, total)


def _dataclass(
    node: ast.ClassDef, names: ModuleNames, below: tuple[str, ...] = ()
) -> dict[str, _Field] | None:
    """What the constructor takes."""
    if node.name in below or _defines(node, "__init__", "__new__"):
        return None
    decorators = [
        names.meaning(d.func if isinstance(d, ast.Call) else d)
        for d in node.decorator_list
    ]
    if decorators != ["dataclass"] or node.keywords:
        return None
    (decorator,) = node.decorator_list
    words = decorator.keywords if isinstance(decorator, ast.Call) else []
    if any(word.arg == "init" and not _is_true(word.value) for word in words):
        return None
    fields: dict[str, _Field] = {}
    for base in reversed(node.bases):
        name = names.meaning(base.value if isinstance(base, ast.Subscript) else base)
        if name in _PLAIN_BASES:
            continue
        parent = _local_class(base, names)
        inherited = (
            None if parent is None else _dataclass(parent, names, (*below, node.name))
        )
        if inherited is None:
            return None
        fields |= inherited
    for name, annotation, value in _annotated(node):
        whole = (
            annotation.value if isinstance(annotation, ast.Subscript) else annotation
        )
        if names.meaning(whole) in ("ClassVar", "KW_ONLY"):
            continue
        found = _dataclass_field(name, annotation, value, names)
        if found is None:
            fields.pop(name, None)  # init=False: the constructor does not take it
        else:
            fields[name] = found
    return fields


def _dataclass_field(
    name: str, annotation: ast.expr, value: ast.expr | None, names: ModuleNames
) -> _Field | None:
    if not isinstance(value, ast.Call) or names.meaning(value.func) != "field":
        return _Field(name, annotation, value is None, value)
    words = {word.arg: word.value for word in value.keywords}
    if "init" in words and not _is_true(words["init"]):
        return None
    required = not words.keys() & {"default", "default_factory"}
    return _Field(name, annotation, required, words.get("default"))


def _annotated(
    node: ast.ClassDef,
) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            yield one.target.id, one.annotation, one.value


def _local_class(node: ast.expr, names: ModuleNames) -> ast.ClassDef | None:
    return names.classes.get(node.id) if isinstance(node, ast.Name) else None


def _defines(node: ast.ClassDef, *methods: str) -> bool:
    return any(isinstance(s, ast.FunctionDef) and s.name in methods for s in node.body)


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True
