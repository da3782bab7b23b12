"""`torch.compile` that compiles a function when it is first called, for imports.

Megatron-Core decorates some thirty functions with it where they are defined, of which a
host calls none and a GPU two. Decorating alone imports torch's compiler, which takes
seconds of each process.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def compiling_when_called() -> Iterator[None]:
    """Functions that are decorated in this context are compiled at their first call, by the
    same arguments.
    """
    import torch  # not before `guard` has hidden what of torch's own imports is broken

    compile_now = torch.compile
    torch.compile = functools.partial(_later, compile_now)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now


def _later(
    compile_now: Callable[..., Any], model: Any = None, **options: Any
) -> Callable[..., Any]:
    if model is None:  # called with options, for what it decorates
        return functools.partial(_later, compile_now, **options)
    if not isinstance(model, types.FunctionType):
        return compile_now(model, **options)  # type: ignore[no-any-return]

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return compile_now(model, **options)  # type: ignore[no-any-return]

    @functools.wraps(model)
    def call(*arguments: Any, **named: Any) -> Any:
        return compiled()(*arguments, **named)

    return call
