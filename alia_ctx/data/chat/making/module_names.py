"""What the names in a Python module's annotations stand for, read from its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

# Where the names come from that annotations of JSON's types are made of.
_KNOWN_MODULES = frozenset(
    (
        *("builtins", "typing", "typing_extensions", "collections", "collections.abc"),
        *("dataclasses", "enum", "os", "pathlib", "types", "_typeshed"),
        *("annotated_types", "pydantic"),
    )
)
# Means a text or a path wherever it is imported from: few packages import it from typeshed.
_KNOWN_ANYWHERE = frozenset({"StrPath"})


class ModuleNames:
    """Imports, classes, and other names that the top of a module gives a value.

    `classes`: by name. `aliases`: what a name stands for, as `Size = tuple[int, int]`
    has it; None where it has no value, or several.
    """

    def __init__(self, module: ast.Module) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        self.aliases: dict[str, ast.expr | None] = {}
        self._imports: dict[str, str] = {}
        for statement in _statements(module.body):
            self._read(statement)

    def _read(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Import(names=names):
                for name in names:
                    whole = name.name if name.asname else name.name.partition(".")[0]
                    self._import(name.asname or whole, whole)
            case ast.ImportFrom(module=source, names=names, level=level):
                for name in names:
                    whole = f"{'.' * level}{source or ''}.{name.name}"
                    self._import(name.asname or name.name, whole)
            case ast.ClassDef(name=name):
                self.classes[name] = statement
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                self.aliases[name] = None
            case ast.TypeAlias(name=ast.Name(id=name), value=value):
                self._alias(name, value)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    for node in ast.walk(target):
                        if isinstance(node, ast.Name):
                            self._alias(node.id, value if node is target else None)
            case ast.AnnAssign(target=ast.Name(id=name), value=value):
                self._alias(name, value)

    def _import(self, name: str, whole: str) -> None:
        """Of several the one that is known: others stand in for it in old versions."""
        if name not in self._imports or _is_known(whole):
            self._imports[name] = whole

    def _alias(self, name: str, value: ast.expr | None) -> None:
        self.aliases[name] = None if name in self.aliases else value

    def meaning(self, node: ast.expr) -> str:
        """`t.List`, `List` -> `List`; empty where it is none of the known modules'. A name
        that nothing in the module gives a value is Python's own, or as good as imported.
        """
        head, *rest = (_dotted(node) or "").split(".")
        if head in self._imports:
            head = self._imports[head]
        elif head in self.aliases or head in self.classes:
            return ""
        whole = ".".join([head, *rest])
        return whole.rpartition(".")[2] if _is_known(whole) else ""

    def is_local(self, node: ast.expr) -> bool:
        """Whether a name is given its value in this module, and nowhere else."""
        if not isinstance(node, ast.Name) or self.meaning(node):
            return False
        here = node.id in self.classes or node.id in self.aliases
        return here and node.id not in self._imports


def _is_known(whole: str) -> bool:
    module, _, name = whole.rpartition(".")
    return not module or module in _KNOWN_MODULES or name in _KNOWN_ANYWHERE


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return None if before is None else f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those at the top, also below `if TYPE_CHECKING:` and `try:`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for block in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, block, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)
