"""torch.compile that compiles what it decorates when that is first called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alia_ctx.mcore.lazy_compile import compiling_when_called
from tests.processes import python_on_a_host

Compiled = list[tuple[Any, dict[str, Any]]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """What torch.compile was called with; what it returns adds 1000."""
    calls: Compiled = []

    def stand_in(model: Callable[..., int], **options: Any) -> Callable[..., int]:
        calls.append((model, options))
        return lambda *words, **named: model(*words, **named) + 1000

    monkeypatch.setattr(torch, "compile", stand_in)
    return calls


def test_once_at_the_first_call_and_with_the_same_options(compiled: Compiled) -> None:
    before = torch.compile
    with compiling_when_called():

        @torch.compile
        def plain(number: int, more: int = 0) -> int:
            """Says what it does."""
            return number + more

        @torch.compile(fullgraph=True, dynamic=False)
        def with_options(number: int) -> int:
            return number * 2

        class Norm:
            scale = 7

            @torch.compile
            def forward(self, number: int) -> int:
                return self.scale * number

    assert torch.compile is before and not compiled
    assert (plain.__name__, plain.__doc__) == ("plain", "Says what it does.")
    assert plain(1) == 1001 and plain(1, more=4) == 1005
    assert [options for _, options in compiled] == [{}], "once for all calls"
    assert with_options(4) == 1008
    assert compiled[-1][1] == {"fullgraph": True, "dynamic": False}
    first, second = Norm(), Norm()
    second.scale = 2
    assert (first.forward(1), second.forward(1)) == (1007, 1002)
    assert len(compiled) == 3


def test_modules_are_compiled_at_once_and_errors_leave_nothing(
    compiled: Compiled,
) -> None:
    before, module = torch.compile, torch.nn.Identity()
    with pytest.raises(RuntimeError, match="half-way"), compiling_when_called():
        torch.compile(module)  # an attribute that somebody reads is there at once
        raise RuntimeError("half-way")
    assert torch.compile is before
    assert compiled == [(module, {})]


def test_what_is_compiled_computes_the_same() -> None:
    """By torch's own, which needs no C++ compiler without a backend that generates code."""
    with compiling_when_called():

        @torch.compile(backend="eager")
        def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.silu(gate) * up

    gate, up = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(swiglu(gate, up), torch.nn.functional.silu(gate) * up)


def test_importing_megatron_imports_no_compiler() -> None:
    """Which it would on each start of each rank, for seconds."""
    code = (
        "import torch; own = torch.compile; import alia_ctx.mcore, sys; "
        "from megatron.core.fusions import fused_bias_swiglu; "
        "assert torch.compile is own; "
        "print(sorted({'torch._dynamo', 'torch._inductor.compile_fx'} & {*sys.modules}))"
    )
    done = python_on_a_host("-c", code, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr[-2000:]
