"""Which attention kernel is taken, and what is said of those that are not."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from alia_ctx.errors import LayoutError
from alia_ctx.nn.attention_kernels import (
    Heads,
    Kernel,
    choose_kernel,
    resolve_kernel,
    try_kernel,
)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(name: str, **members: Any) -> None:
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)

    return install


def test_an_unknown_kernel_and_a_gpu_kernel_on_a_cpu() -> None:
    with pytest.raises(
        LayoutError, match="'flsh2' is unknown; choose one of auto, flash4"
    ):
        resolve_kernel("flsh2", "cpu")
    with pytest.raises(LayoutError, match="torch_varlen needs a GPU"):
        resolve_kernel("torch_varlen", "cpu")


def test_auto_is_the_reference_on_a_cpu_only(
    monkeypatch: pytest.MonkeyPatch, modules: Any
) -> None:
    assert resolve_kernel("auto", "cpu").name == "reference"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for module in (
        "flash_attn",
        "flash_attn.cute",
        "flash_attn_interface",
        "torch.nn.attention.varlen",
    ):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        LayoutError, match=r"no attention kernel for this GPU:(\n  .*){4}"
    ):
        resolve_kernel("auto", "cuda")
    modules("torch.nn.attention.varlen", varlen_attn=lambda *a, **k: None)
    assert resolve_kernel("auto", "cuda").name == "torch_varlen"
    modules("flash_attn_interface", flash_attn_varlen_func=lambda *a, **k: None)
    assert resolve_kernel("auto", "cuda").name == "flash3"


@pytest.mark.parametrize("generation", [8, 9, 10, 12])
def test_no_gpu_gets_the_reference_by_itself(
    generation: int, monkeypatch: pytest.MonkeyPatch, modules: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (generation, 0))
    modules("torch.nn.attention.varlen", varlen_attn=lambda *a, **k: None)
    assert resolve_kernel("auto", "cuda").name in ("flash2", "flash4", "torch_varlen")


class _Breaks:
    """A module that is there in part: what it is asked for raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'cutlass'"),
        OSError("undefined symbol"),
        RuntimeError("built for another torch"),
        TypeError("unexpected argument"),
        KeyError("sm_90a"),
        SystemExit(0),
        type("Panic", (BaseException,), {})("at the disco"),
    ],
)
def test_a_faster_kernel_that_is_there_in_part_is_no_surprise(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, modules: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for module in ("flash_attn_interface", "flash_attn"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", _Breaks(error))  # type: ignore[arg-type]
    modules("torch.nn.attention.varlen", varlen_attn=lambda *a, **k: None)
    choice = choose_kernel("auto", "cuda")
    assert choice.kernel.name == "torch_varlen"
    flash3, flash4 = choice.passed_over
    assert flash3.startswith("attention kernel flash3 needs") and "hopper/" in flash3
    assert type(error).__name__ in flash4 and "install flash-attn-4" in flash4
    # What is as fast as any is no surprise.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert choose_kernel("auto", "cuda").passed_over == ()


def test_fp32_on_a_gpu_is_computed_by_the_one_kernel_that_has_it(
    monkeypatch: pytest.MonkeyPatch, modules: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    modules("flash_attn_interface", flash_attn_varlen_func=lambda *a, **k: None)
    modules("torch.nn.attention.varlen", varlen_attn=lambda *a, **k: None)
    heads = Heads(4, 2, 64, torch.float32)
    choice = choose_kernel("auto", "cuda", heads, trial=False)
    assert choice.kernel.name == "reference"
    [why] = choice.passed_over
    assert "engine.precision=bf16" in why
    for name in ("flash3", "torch_varlen"):
        with pytest.raises(
            LayoutError, match=f"{name}: .*float32.*attention=reference"
        ):
            choose_kernel(name, "cuda", heads)
    by_name = choose_kernel("reference", "cuda", heads, trial=False)
    assert by_name.passed_over == (why,)


@pytest.mark.parametrize(
    ("generation", "name", "faster"),
    [
        (9, "torch_varlen", "flash3 or flash4"),
        (9, "flash2", "flash3 or flash4"),
        (9, "reference", "flash3 or flash4"),
        (10, "torch_varlen", "flash4"),
        (9, "flash3", None),
        (9, "flash4", None),
        (8, "flash2", None),
        (12, "torch_varlen", None),
        (8, "reference", ""),
    ],
)
def test_a_slower_kernel_that_is_asked_for_by_name_is_said(
    generation: int,
    name: str,
    faster: str | None,
    monkeypatch: pytest.MonkeyPatch,
    modules: Any,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (generation, 0))
    for module in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        modules(module, flash_attn_varlen_func=lambda *a, **k: None)
    modules("torch.nn.attention.varlen", varlen_attn=lambda *a, **k: None)
    heads = Heads(4, 2, 64, torch.bfloat16)
    choice = choose_kernel(name, "cuda", heads, trial=False)
    assert choice.kernel.name == name
    if faster is None:
        assert choice.passed_over == ()
    else:
        [why] = choice.passed_over
        assert why.startswith(f"engine.attention={name} asks for it; set engine.att")
        assert faster in why and ("where it is there" in why) == bool(faster)
    assert choose_kernel("reference", "cpu", heads).passed_over == (), "of a host"


def test_heads_that_a_kernel_does_not_compute_are_told_before_training() -> None:
    def narrow(q: Any, *rest: Any) -> Any:
        assert q.shape[-1] <= 128, "head dimension\n up to 128"
        return resolve_kernel("reference", "cpu").attend(q, *rest)

    kernel = Kernel("flash9", narrow)
    try_kernel(kernel, Heads(4, 2, 128, torch.bfloat16), "cpu")
    said = r"flash9 does not compute 4 heads of 192 over 2 .*dimension up to 128"
    with pytest.raises(LayoutError, match=said):
        try_kernel(kernel, Heads(4, 2, 192, torch.bfloat16), "cpu")
