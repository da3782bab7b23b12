"""Which tests start processes, found in their code: no list to keep.

`pytest --fast` leaves them out. A test counts as starting processes if it, a fixture of
its, or a function of `tests` that one of them names, names `run_distributed`,
`subprocess` or `multiprocessing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

STARTERS = {"subprocess", "multiprocessing"}


def starts_processes(item: pytest.Item) -> bool:
    """Whether this test, or a fixture of its, may start a process."""
    if not isinstance(item, pytest.Function):
        return False
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.function, *(f.func for group in fixtures for f in group)]
    return any(may_start(function) for function in functions)


@cache
def may_start(function: Any) -> bool:
    """Whether a function, or one of `tests` that it names, may start a process."""
    seen: set[Any] = set()
    queue = [function]
    while queue:
        current = queue.pop()
        current = getattr(current, "__wrapped__", current)
        if not isinstance(current, FunctionType) or current in seen:
            continue
        seen.add(current)
        names = set(_names(current.__code__))
        for value in [current.__globals__.get(name) for name in names]:
            if isinstance(value, ModuleType):
                if value.__name__ in STARTERS:
                    return True
                if value.__name__.startswith("tests."):
                    queue += [getattr(value, name, None) for name in names]
            module = getattr(value, "__module__", None) or ""
            if not module.startswith("tests."):
                continue
            if module == "tests.distributed":
                return True
            queue += vars(value).values() if isinstance(value, type) else [value]
    return False


def _names(code: CodeType) -> Iterator[str]:
    """Names that code uses, those of functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
