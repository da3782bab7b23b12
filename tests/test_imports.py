"""The import arrows of the architecture: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "alia_ctx"

# module or package (relative to alia_ctx) -> what it may import from alia_ctx; cli and workflow wire everything.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "progress": set(),
    "launch": set(),
    "signals": {"errors"},
    "metrics": {"errors"},
    "schema": {"errors"},
    "model": {"errors"},
    "layout": {"errors", "model"},
    "rope": {"errors", "model"},
    "balance": {"errors"},
    "planner": {"errors", "model", "layout"},
    "documents": {"errors", "files"},
    "tokens": {"errors", "files", "documents"},
    "packing": {"errors", "files", "tokens"},
    "config": {"errors", "schema", "model", "layout", "documents", "packing", "metrics"},
    "checkpoint": {"errors", "files", "model"},
    "engine": {"packing"},
    "keeper": {"errors", "checkpoint", "config", "engine"},
    "trainer": {"errors", "checkpoint", "packing", "balance", "config", "metrics", "signals", "engine", "keeper"},
    "evaluation": {"errors", "files", "packing", "tokens"},
    "tensorfile": {"errors", "files"},
    "hf": {"errors", "files", "model", "rope", "checkpoint", "tensorfile"},
    "mcore": {"errors", "files", "rope", "model", "layout", "config", "packing", "engine", "checkpoint", "tensorfile"},
    "corpus": {"errors", "files", "installed_text"},
    "installed_text": {"errors"},
    "tokenizer": {"errors", "files"},
}


def imports_of(file: Path) -> set[str]:
    """Names below alia_ctx that a file imports, and top-level packages, as `module` and `:package`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "alia_ctx" else [node.module]
        for name in names:
            parts = name.split(".")
            found.add(parts[1] if parts[0] == "alia_ctx" and len(parts) > 1 else f":{parts[0]}")
    return found


def unit_of(file: Path) -> str:
    relative = file.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_arrows(file: Path) -> None:
    unit, imports = unit_of(file), imports_of(file)
    if unit in ALLOWED:
        inside = {name for name in imports if not name.startswith(":")} - {unit}
        assert inside <= ALLOWED[unit], f"{unit} may not import {sorted(inside - ALLOWED[unit])}"
    if unit != "mcore":
        assert not imports & {":megatron", ":transformer_engine"}, "only alia_ctx/mcore imports the engine"
    if unit != "config":
        assert ":omegaconf" not in imports, "only config.py imports omegaconf"
    if unit in ("model", "layout", "planner", "config", "checkpoint", "schema", "packing", "tokens", "documents"):
        assert ":torch" not in imports, f"{unit} is arithmetic and files; it needs no torch"


def test_every_named_unit_exists() -> None:
    units = {unit_of(f) for f in PACKAGE.rglob("*.py")}
    assert {"mcore", "hf", "packing", "config", "trainer"} <= units
