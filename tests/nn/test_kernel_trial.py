"""What an attention kernel has to compute before it is taken."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alia_ctx.errors import LayoutError
from alia_ctx.nn import attention_kernels, kernel_trial
from alia_ctx.nn.attention_kernels import (
    Heads,
    Kernel,
    choose_kernel,
    resolve_kernel,
    try_kernel,
)
from alia_ctx.nn.kernel_trial import PACKINGS, TOLERANCE

BF16 = torch.bfloat16
HEADS = Heads(4, 2, 64, BF16)
Change = Callable[[Tensor, int, int], Tensor]


def visible(queries: int, keys: int) -> Tensor:
    """The mask of one document, aligned at the bottom right."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def flash(
    mask: Callable[[int, int], Tensor] = visible,
    one_document: bool = False,
    interleaved: bool = False,
    scale: float = 1.0,
) -> Callable[..., Tensor]:
    """`flash_attn_varlen_func` by torch, document after document; options are mistakes."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float, causal: bool,
    ) -> Tensor:  # fmt: skip
        assert causal
        bounds = [cu_seqlens_q.tolist(), cu_seqlens_k.tolist()]
        if one_document:
            bounds = [[b[0], b[-1]] for b in bounds]
        share, outputs = q.shape[1] // k.shape[1], []
        for low, high, first, last in zip(
            bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False
        ):
            query = q[low:high].transpose(0, 1).float()
            key, value = (
                (
                    x.repeat(1, share, 1)
                    if interleaved
                    else x.repeat_interleave(share, 1)
                )
                for x in (k[first:last].float(), v[first:last].float())
            )
            scores = query @ key.permute(1, 2, 0) * softmax_scale * scale
            scores = scores.masked_fill(~mask(high - low, last - first), -torch.inf)
            outputs.append((scores.softmax(-1) @ value.transpose(0, 1)).transpose(0, 1))
        return torch.cat(outputs).to(q.dtype)

    return attend


def kernel_of(function: Callable[..., Tensor]) -> Kernel:
    return Kernel("flash9", attention_kernels._adapt_flash(function), "nobodys.kernels")


def without_the_first(queries: int, keys: int) -> Tensor:
    """No query of the document that begins before the queries sees its first key."""
    mask = visible(queries, keys)
    mask[:, : keys > queries] = False
    return mask


def one_block(queries: int, keys: int) -> Tensor:
    """A query sees 128 keys: what is carried over from the block before them is lost."""
    return visible(queries, keys).triu(keys - queries - 127)


WRONG = {
    "top left, as before 2.1": flash(lambda q, k: torch.ones(q, k).tril().bool()),
    "not causal": flash(lambda q, k: torch.ones(q, k).bool()),
    "one key ahead": flash(lambda q, k: torch.ones(q, k).tril(k - q + 1).bool()),
    "the first key left out": flash(without_the_first),
    "one block of keys": flash(one_block),
    "documents run together": flash(one_document=True),
    "heads of another group": flash(interleaved=True),
    "another scale": flash(scale=64**0.5),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_a_kernel_computes_wrongly_is_said(mistake: str) -> None:
    said = r"flash9 computes 4 heads of 64 over 2 wrongly \(nobodys, relative error of "
    said += r".*[\d.]+; 0\.02 is allowed\); install another release .*engine.att"
    with pytest.raises(LayoutError, match=said):
        try_kernel(kernel_of(WRONG[mistake]), HEADS, "cpu")


class _Changed(torch.autograd.Function):
    """The numbers forward; backward their gradients, changed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.change(gradient), None


NAN = float("nan")


@pytest.mark.parametrize("name", ["queries", "keys", "values"])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x: x * NAN, "nan"),
        (lambda x: x * 0, "1"),
        (lambda x: x * 1.03, "0.03"),
        (lambda x: torch.cat([x[:-1], x[-1:] * NAN]), "nan"),
    ],
)
def test_each_gradient_is_compared(name: str, change: Any, error: str) -> None:
    place = ("queries", "keys", "values").index(name)
    right = flash()

    def attend(*parts: Tensor, **options: Any) -> Tensor:
        inputs = [*parts]
        inputs[place] = _Changed.apply(inputs[place], change)  # type: ignore[no-untyped-call]
        return right(*inputs, **options)

    kernel = Kernel("flash9", lambda q, k, v, spec, scale: attend(
        q, k, v, cu_seqlens_q=spec.cu_seqlens_q, cu_seqlens_k=spec.cu_seqlens_k,
        max_seqlen_q=0, max_seqlen_k=0, softmax_scale=scale, causal=True,
    ))  # fmt: skip
    with pytest.raises(
        LayoutError, match=rf"relative error of {name}' gradient {error}\d*;"
    ):
        try_kernel(kernel, HEADS, "cpu")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda q, *_: q * NAN, "output nan, queries' gradient nan, keys' gradient 1"),
        (lambda q, *_: q.detach(), "output 2.1, queries' gradient 1, keys' gradient 1"),
        (lambda q, *_: q[:-1], r"output is \[23, 4, 64\] of torch.bfloat16 and not"),
        (lambda q, *_: q.float(), r"output is \[24, 4, 64\] of torch.float32 and not"),
        (lambda q, *_: q[:, :1], r"output is \[24, 1, 64\] of"),
    ],
)
def test_what_is_no_result_at_all(function: Any, said: str) -> None:
    with pytest.raises(LayoutError, match=f"flash9 computes .* wrongly .*{said}"):
        try_kernel(Kernel("flash9", function), HEADS, "cpu")


class _Rounded(torch.autograd.Function):
    """FlashAttention's arithmetic in 16 bits (arXiv 2307.08691, algorithms 1 and 2): weights
    and the scores' gradients are rounded before each product, results once, and the sum of
    output times gradient is taken of the rounded output.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spec: Any) -> Tensor:
        share, half = q.shape[1] // k.shape[1], q.dtype
        wide = [x.float().repeat_interleave(share, 1) for x in (k, v)]
        mask = torch.block_diag(
            *(
                visible(int(n), int(m)).float()
                for n, m in zip(
                    np.diff(spec.query_offsets), np.diff(spec.key_offsets), strict=True
                )
            )
        ).bool()
        scores = torch.einsum("qhd,khd->hqk", q.float(), wide[0]) * q.shape[2] ** -0.5
        scores = scores.masked_fill(~mask, -torch.inf)
        raised = (scores - scores.amax(-1, keepdim=True)).exp()
        total = raised.sum(-1, keepdim=True)
        out = torch.einsum("hqk,khd->qhd", raised.to(half).float(), wide[1])
        out = (out / total.permute(1, 0, 2)).to(half)
        ctx.save_for_backward(q, *wide, raised / total, out)
        ctx.share = share
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, weights, out = ctx.saved_tensors
        half, scale, g = q.dtype, q.shape[2] ** -0.5, grad.float()
        delta = (out.float() * g).sum(-1).T[..., None]
        of_weights = torch.einsum("qhd,khd->hqk", g, v)
        of_scores = (weights * (of_weights - delta)).to(half).float()
        of_q = (torch.einsum("hqk,khd->qhd", of_scores, k) * scale).to(half)
        of_k = torch.einsum("hqk,qhd->khd", of_scores, q.float()) * scale
        of_v = torch.einsum("hqk,qhd->khd", weights.to(half).float(), g)
        # Each query head's is rounded, then those that share a group are added.
        of_k, of_v = (
            x.to(half).float().unflatten(1, (-1, ctx.share)).sum(2).to(half)
            for x in (of_k, of_v)
        )
        return of_q, of_k, of_v, None


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "groups", "dim"),
    [(64, 8, 128), (8, 1, 128), (1, 1, 64), (16, 2, 256), (4, 4, 96), (128, 1, 192)],
)
def test_rounding_in_16_bits_passes_with_room(
    heads: int, groups: int, dim: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply: Any = _Rounded.apply
    kernel = Kernel("flash9", lambda q, k, v, spec, _: apply(q, k, v, spec))
    # A third of what is allowed: what tests/gpu allows on GPUs.
    monkeypatch.setitem(TOLERANCE, dtype, TOLERANCE[dtype] / 3)
    try_kernel(kernel, Heads(heads, groups, dim, dtype), "cpu")
    monkeypatch.setitem(TOLERANCE, dtype, TOLERANCE[dtype] / 10)
    with pytest.raises(LayoutError, match="wrongly"):
        try_kernel(kernel, Heads(heads, groups, dim, dtype), "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_reference_passes(dtype: Any) -> None:
    for heads in (
        (4, 2, 64),
        (64, 8, 128),
        (3, 1, 256),
    ):
        try_kernel(resolve_kernel("reference", "cpu"), Heads(*heads, dtype), "cpu")


def test_the_values_come_as_a_view_of_what_a_layer_projects() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        assert not v.is_contiguous() and v.stride(-1) == 1
        return resolve_kernel("reference", "cpu").attend(q, k, v, *rest)

    try_kernel(Kernel("flash9", attend), HEADS, "cpu")


def test_no_global_generator_moves_and_the_mode_does_not_matter() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with torch.no_grad():
        try_kernel(kernel_of(flash()), HEADS, "cpu")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("no GPU"), GeneratorExit])
def test_a_kernel_that_ends_the_program_is_no_kernel(error: Any) -> None:
    def attend(*_: Any) -> Tensor:
        raise error

    with pytest.raises(LayoutError, match=r"flash9 does not compute .*Exit"):
        try_kernel(Kernel("flash9", attend), HEADS, "cpu")


def test_requests_to_stop_and_memory_that_runs_out_pass() -> None:
    from alia_ctx.cli.stopping import Stopped

    for error in (KeyboardInterrupt(), Stopped(15), torch.OutOfMemoryError("full")):

        def attend(*_: Any, error: BaseException = error) -> Tensor:
            raise error

        with pytest.raises(type(error)):
            try_kernel(Kernel("flash9", attend), HEADS, "cpu")


# -- the choice --------------------------------------------------------------------------

MODULES = {
    "flash3": "flash_attn_interface",
    "flash4": "flash_attn.cute",
    "flash2": "flash_attn",
    "torch_varlen": "torch.nn.attention.varlen",
}
NAN_KERNEL: Callable[..., Tensor] = lambda q, *_, **__: q * NAN  # noqa: E731


def varlen(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int,
           *, scale: float, window_size: Any, enable_gqa: bool = False) -> Tensor:  # fmt: skip
    return flash()(q, k, v, cu_q, cu_k, max_q, max_k, scale, window_size == (-1, 0))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A pretended Hopper on which `flash3=...` is what that kernel computes; the others
    compute what they should.
    """
    trial = attention_kernels.try_kernel
    monkeypatch.setattr(
        attention_kernels, "try_kernel", lambda k, heads, _: trial(k, heads, "cpu")
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))

    def install(**computed: Callable[..., Tensor]) -> None:
        for name, module in MODULES.items():
            there = types.ModuleType(module)
            right = varlen if name == "torch_varlen" else flash()
            function = (
                "varlen_attn" if name == "torch_varlen" else "flash_attn_varlen_func"
            )
            setattr(there, function, computed.get(name, right))
            monkeypatch.setitem(sys.modules, module, there)

    return install


def test_auto_goes_on_to_the_next_and_says_why(hopper: Callable[..., None]) -> None:
    hopper()
    assert choose_kernel("auto", "cuda", HEADS).kernel.name == "flash3"
    hopper(flash3=NAN_KERNEL)
    choice = choose_kernel("auto", "cuda", HEADS)
    assert choice.kernel.name == "flash4"
    [why] = choice.passed_over  # as fast, but a build that is wrong is never a secret
    assert "flash3 computes" in why and "install another release" in why
    top_left = WRONG["top left, as before 2.1"]
    hopper(flash3=NAN_KERNEL, flash4=top_left, flash2=top_left)
    choice = choose_kernel("auto", "cuda", HEADS)
    assert choice.kernel.name == "torch_varlen"
    for name, why in zip(("flash3", "flash4"), choice.passed_over, strict=True):
        assert why.startswith(
            f"attention kernel {name} computes 4 heads of 64 over 2 w"
        )
        assert "install another release" in why
    hopper(**dict.fromkeys(MODULES, NAN_KERNEL))
    with pytest.raises(LayoutError, match=r"no attention kernel(.*\n.*wrongly){4}"):
        choose_kernel("auto", "cuda", HEADS)


@pytest.mark.parametrize("name", [*MODULES, "reference"])
def test_every_kernel_is_tried_by_name(
    name: str, hopper: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper()
    assert choose_kernel(name, "cuda", HEADS).kernel.name == name
    hopper(**dict.fromkeys(MODULES, NAN_KERNEL))
    monkeypatch.setattr("alia_ctx.nn.attention_reference.blocked_attention", NAN_KERNEL)
    with pytest.raises(LayoutError, match=f"kernel {name} computes .* wrongly"):
        choose_kernel(name, "cuda", HEADS)
    assert choose_kernel(name, "cuda", HEADS, trial=False).kernel.name == name


def test_what_fp32_falls_back_to_is_tried_too(
    hopper: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper()
    heads = Heads(4, 2, 64, torch.float32)
    assert choose_kernel("auto", "cuda", heads).kernel.name == "reference"
    monkeypatch.setattr("alia_ctx.nn.attention_reference.blocked_attention", NAN_KERNEL)
    with pytest.raises(LayoutError, match=r"reference computes .* wrongly"):
        choose_kernel("auto", "cuda", heads)


def test_memory_is_filled_before_a_kernel_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the sizes of what it gets, so that what it leaves unwritten is no right result."""
    filled: list[list[tuple[int, ...]]] = []
    monkeypatch.setattr(
        kernel_trial,
        "fill_free_memory",
        lambda like: filled.append([tuple(part.shape) for part in like]),
    )
    right, seen = flash(), []

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.append([tuple(part.shape) for part in (q, k, v)])
        assert filled == seen
        return right(q, k, v, **options)

    try_kernel(kernel_of(attend), HEADS, "cpu")
    assert len(seen) == len(PACKINGS)
