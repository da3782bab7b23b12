"""The import arrows of the architecture: who may know whom, in both directions."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "alia_ctx"
GROUND = {
    *("errors", "files", "host_memory", "identity", "optional_packages", "progress"),
    "rank_variables",
}

# Unit (a package, or a module at the top) -> the units it may import beside the ground.
ALLOWED: dict[str, set[str]] = {
    **{unit: set() for unit in GROUND},
    "spec": set(),
    "data": set(),
    # What stages start from is compared: the manifest's door, no tensors. `layout: auto`
    # is resolved where the configuration is read, so that all below see sizes; those of
    # `hf_base` stand in the config.json of a Hugging Face directory.
    "config": {"checkpoint", "hf", "planner", "spec", "data"},
    "checkpoint": {"spec"},
    "nn": {"spec", "data"},
    "train": {"checkpoint", "config", "data", "spec"},
    "mcore": {"train", "nn", "checkpoint", "config", "data", "spec"},
    # The tokenizer of an export is held against that of the training text.
    "hf": {"checkpoint", "data", "nn", "spec"},
    "evaluation": {"data", "spec"},
    "planner": {"data", "spec"},
    "report": {"evaluation", "spec"},
    # Kernels are asked whether they import; ranks meet as those of a stage do.
    "cluster": {"spec", "nn", "train"},
    # Its conversations are made as a user makes them; its text has the sentences of the
    # tasks that its model is measured by.
    "demo": {"data", "evaluation"},
    "workflow": {
        *("spec", "data", "config", "checkpoint", "train", "mcore"),
        *("hf", "evaluation", "planner", "report", "cluster"),
    },
    "cli": {
        *("spec", "data", "config", "checkpoint", "train"),
        *("hf", "evaluation", "planner", "report", "cluster", "workflow"),
    },
}
# In mcore/, files that need no Megatron themselves: they stand in for CUDA beneath it.
BENEATH_MEGATRON = {"mcore/lazy_compile.py", "mcore/host.py", "mcore/quiet.py"}
NO_TORCH = {"spec", "data", "config", "planner", "evaluation", "report"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(file: Path) -> set[str]:
    """What a file imports: units below alia_ctx, and other top-level packages as `:package`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inside = node.module == "alia_ctx"
            names = (
                [f"alia_ctx.{a.name}" for a in node.names] if inside else [node.module]
            )
        for name in names:
            parts = name.split(".")
            ours = parts[0] == "alia_ctx" and len(parts) > 1
            found.add(parts[1] if ours else f":{parts[0]}")
    return found


def unit_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_arrows(file: Path) -> None:
    unit, imports = unit_of(file), imports_of(file)
    if unit in ALLOWED:
        inside = {name for name in imports if not name.startswith(":")}
        surplus = inside - {unit} - GROUND - ALLOWED[unit]
        assert not surplus, f"{unit} may not import {sorted(surplus)}"
    if unit in NO_TORCH:
        assert ":torch" not in imports, (
            f"{unit} is arithmetic and files; it needs no torch"
        )
    if name_of(file) != "config/load.py":
        assert ":omegaconf" not in imports, "only config/load.py imports omegaconf"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_mcore_and_nobody_else_imports_megatron(file: Path) -> None:
    needs_it = bool(imports_of(file) & {":megatron", ":transformer_engine"})
    assert needs_it == (
        unit_of(file) == "mcore" and name_of(file) not in BENEATH_MEGATRON
    )


def test_every_unit_is_named() -> None:
    assert {unit_of(file) for file in FILES} - {"__init__"} == set(ALLOWED)


def test_the_arrows_make_no_circle() -> None:
    """Between packages; CycleError names the circle."""
    assert len(list(TopologicalSorter(ALLOWED).static_order())) == len(ALLOWED)


def test_files_make_no_circle() -> None:
    """Between files, imports inside functions included: a package's `__init__` gathers
    names for those outside, so inside a package nobody asks it.
    """
    modules = {module_of(file): file for file in FILES}
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                targets |= {n if n in modules else node.module for n in names}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        graph[module] = targets & set(modules)
    assert list(TopologicalSorter(graph).static_order())


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOW_THE_WHOLE_RUN = {"config", "workflow", "cli"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_whole_configuration_stops_at_workflow(file: Path) -> None:
    """What lies below takes the parts that it uses."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    if unit_of(file) not in KNOW_THE_WHOLE_RUN:
        assert not names & {"RunConfig", "load_run"}
