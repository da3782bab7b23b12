"""What `doctor` says of the kernel that training would take, on a pretended Hopper."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from alia_ctx.cluster import software
from alia_ctx.cluster.software import Needs
from alia_ctx.config.layer_rules import kernel_problems
from alia_ctx.config.run import EngineConfig
from alia_ctx.errors import LayoutError
from alia_ctx.nn import attention_kernels
from alia_ctx.nn.attention_kernels import Heads, choose_kernel
from alia_ctx.nn.attention_reference import blocked_attention, tiles
from alia_ctx.spec.model import ModelSpec

MODEL = ModelSpec(
    num_hidden_layers=2,
    hidden_size=512,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    vocab_size=100,
)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash3 refuses heads of less than two groups, and torch's computes all there are."""

    def attend(
        q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, *_: Any, scale: float, **__: Any
    ) -> Any:
        return blocked_attention(q, k, v, tiles(cu_q.numpy(), cu_k.numpy()), scale)

    def narrow(q: Any, k: Any, v: Any, **options: Any) -> Any:
        assert k.shape[1] >= 2, "two groups at least"
        bounds = options["cu_seqlens_q"], options["cu_seqlens_k"]
        return attend(q, k, v, *bounds, scale=options["softmax_scale"])

    trial = attention_kernels.try_kernel
    monkeypatch.setattr(
        attention_kernels,
        "try_kernel",
        lambda kernel, heads, _: trial(kernel, heads, "cpu"),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, None)
    flash3 = types.ModuleType("flash_attn_interface")
    flash3.flash_attn_varlen_func = narrow  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", flash3)
    varlen = types.ModuleType("torch.nn.attention.varlen")
    varlen.varlen_attn = attend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", varlen)


def test_it_is_tried_with_the_heads_of_each_stage(hopper: None) -> None:
    [found] = software.kernel(Needs(model=MODEL))
    assert (found.verdict, found.words) == (
        "good",
        "flash3, of the fastest for this GPU",
    )
    [found] = software.kernel(Needs(model=MODEL, tp=(2,)))
    assert found.verdict == "weak" and found.words.startswith(
        "torch_varlen, about half"
    )
    assert "flash3 does not compute 2 heads of 128 over 1" in found.words
    both = [*software.kernel(Needs(model=MODEL, tp=(1, 2, 2)))]
    assert [f.verdict for f in both] == ["good", "weak"]
    assert both[1].words.endswith("(for 2 heads over 1 a rank)")


def test_what_the_run_asks_for_is_what_is_judged(hopper: None) -> None:
    [found] = software.kernel(Needs(attention="flash3", model=MODEL, tp=(2,)))
    assert found.verdict == "broken" and "two groups at least" in found.words
    assert software.gpu_notes(Needs(attention="flash3", model=MODEL, tp=(2,)))
    [found] = software.kernel(Needs(attention="torch_varlen", model=MODEL))
    assert found.verdict == "weak" and "asks for it" in found.words
    [found] = software.kernel(Needs(precision="fp32", model=MODEL))
    assert found.verdict == "weak" and found.words.startswith("reference, many times")
    [found] = software.kernel(Needs(device="cpu", model=MODEL))
    assert found.words == "reference, for tests and small models"
    assert software.gpu_notes(Needs(device="cpu", model=MODEL)) == []


def test_a_full_gpu_says_nothing_of_the_kernel(
    hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(attention_kernels, "try_kernel", full)
    [found] = software.kernel(Needs(model=MODEL))
    assert (found.verdict, found.words) == (
        "weak",
        "could not be tried (OutOfMemoryError: full)",
    )


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["auto", *attention_kernels._KERNELS])
def test_the_rules_refuse_what_no_device_or_precision_has(
    name: Any, device: Any, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: against what the engine does where everything is installed."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for module in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        there = types.ModuleType(module)
        there.flash_attn_varlen_func = lambda: None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module, there)
    engine = EngineConfig(attention=name, device=device, precision=precision)
    heads = Heads.of(MODEL, precision)
    try:
        choose_kernel(name, device, heads, trial=False)
    except LayoutError:
        assert kernel_problems(engine)
    else:
        assert kernel_problems(engine) == []


@pytest.mark.parametrize("asked", ["auto", "flash3", "reference"])
def test_a_run_on_gpus_is_not_judged_by_a_host(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the processor would take is no finding on what the GPU will."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    needs = Needs(device="cuda", attention=asked, layers="te", model=MODEL)
    [found] = software.kernel(needs)
    assert found.verdict == "weak" and found.words.startswith(
        f"engine.attention={asked} was"
    )
    assert "only be tried where the GPU is" in found.words
    there = software.layers(needs)
    assert (there.verdict, there.remedy) == ("weak", found.remedy)
    assert "engine.layers=te was not tried" in there.words
    [on_host] = software.kernel(Needs(device="auto", model=MODEL))
    assert on_host.verdict == "good"


def test_layers_that_need_no_trial_are_told_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert software.layers(Needs(device="cuda")).words == "Megatron-Core's"
