"""The blocked reference against dense fp64, the arguments that GPU kernels get, and the
choice of a kernel.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alia_ctx.errors import LayoutError
from alia_ctx.nn.attention_kernels import (
    Heads,
    VarlenSpec,
    resolve_kernel,
    try_kernel,
    varlen_attention,
)
from alia_ctx.nn.attention_reference import Tile, blocked_attention, tiles
from alia_ctx.nn.determinism import deterministic_algorithms
from tests import dense
from tests.processes import python_on_a_host


def random_inputs(
    queries: int, keys: int, heads: int, groups: int, dim: int, dtype: torch.dtype
) -> list[Tensor]:
    shapes = [(queries, heads, dim), (keys, groups, dim), (keys, groups, dim)]
    return [
        torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def dense_chunk(
    q: Tensor, k: Tensor, v: Tensor, query_offsets: Any, key_offsets: Any, scale: float
) -> Tensor:
    pairs = zip(
        query_offsets, query_offsets[1:], key_offsets, key_offsets[1:], strict=False
    )
    return torch.cat(
        [dense.causal(q[a:b], k[c:d], v[c:d], scale) for a, b, c, d in pairs]
    )


CHUNKS = {
    "one document": ([0, 700], [0, 700]),
    "long prefix": ([0, 300, 310, 700], [0, 2500, 2510, 2900]),
    "many short": (
        [0, 1, 2, 3, 50, 51, 64, 70, 134, 250, 257],
        [0, 1, 2, 3, 50, 51, 64, 70, 134, 250, 257],
    ),
    "short after prefix": ([0, 1, 2, 40], [0, 1030, 1031, 1069]),
    "single token": ([0, 1], [0, 1]),
    "exactly one tile": ([0, 64], [0, 1088]),
    "whole tiles and blocks": ([0, 256], [0, 1280]),
}


@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (6, 1)])
@pytest.mark.parametrize("name", CHUNKS)
def test_reference_equals_dense_fp64(name: str, heads: int, groups: int) -> None:
    torch.manual_seed(0)
    query_offsets, key_offsets = map(np.array, CHUNKS[name])
    exact = random_inputs(
        query_offsets[-1], key_offsets[-1], heads, groups, 16, torch.float64
    )
    expected = dense_chunk(*exact, query_offsets, key_offsets, 0.3)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 2e-6)):
        ours = [x.detach().to(dtype).requires_grad_() for x in exact]
        out = blocked_attention(*ours, tiles(query_offsets, key_offsets), 0.3)
        out.backward(gradient.to(dtype))
        assert dense.relative_error(out, expected) < tolerance
        for mine, theirs in zip(ours, exact, strict=True):
            assert (mine.grad - theirs.grad).norm() <= tolerance * (
                theirs.grad.norm() + 1
            )


def test_reference_in_bf16_is_one_rounding_from_exact() -> None:
    """Inputs are taken as they are and the sums are fp32, so only the results are rounded:
    2**-9 of each on average.

    The backward reads the rounded output for its row sums, dO.O, which adds one
    rounding of O, times dO and P, to
    the score gradients: of the order of the rounding of dQ and dK themselves, hence 3
    times for those.
    """
    torch.manual_seed(0)
    offsets = np.array([0, 100, 101, 600])
    ours = random_inputs(600, 600, 4, 2, 32, torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in ours]
    expected = dense_chunk(*exact, offsets, offsets, 32**-0.5)
    gradient = torch.randn_like(expected).bfloat16()
    expected.backward(gradient.double())
    out = blocked_attention(*ours, tiles(offsets, offsets), 32**-0.5)
    out.backward(gradient)
    assert out.dtype == torch.bfloat16
    assert dense.relative_error(out, expected) < 2**-8
    for mine, theirs, roundings in zip(ours, exact, (3, 3, 1), strict=True):
        assert dense.relative_error(mine.grad, theirs.grad) < roundings * 2**-8


def test_scores_beyond_the_range_of_exp() -> None:
    """Scores of thousands overflow exp without the running maximum, in any order of the blocks."""
    offsets = np.array([0, 3000])
    q, k, v = random_inputs(3000, 3000, 1, 1, 8, torch.float64)
    with torch.no_grad():
        k.mul_(torch.linspace(1, 300, 3000)[:, None, None])
    expected = dense_chunk(q, k, v, offsets, offsets, 1.0)
    out = blocked_attention(q, k, v, tiles(offsets, offsets), 1.0)
    assert torch.isfinite(out).all()
    assert dense.relative_error(out, expected) < 1e-12


def test_strided_keys_and_values_are_accepted() -> None:
    offsets = np.array([0, 40])
    q = torch.randn(40, 2, 8, dtype=torch.float64)
    pair = torch.randn(60, 2, 2, 8, dtype=torch.float64)
    k, v = pair[5:45, 0], pair[5:45, 1]
    out = blocked_attention(q, k, v, tiles(offsets, offsets), 1.0)
    assert torch.equal(
        out,
        blocked_attention(
            q, k.contiguous(), v.contiguous(), tiles(offsets, offsets), 1.0
        ),
    )


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(0, 90),
    st.integers(1, 64),
)
def test_tiles_cover_each_query_once(
    lengths: list[int], prefix: int, size: int
) -> None:
    query_offsets = np.concatenate([[0], np.cumsum(lengths)])
    key_offsets = query_offsets + prefix
    key_offsets[0] = 0
    found = tiles(query_offsets, key_offsets, size)
    assert [t.query_start for t in found] == [0, *(t.query_stop for t in found[:-1])]
    assert found[-1].query_stop == query_offsets[-1]
    assert all(0 < t.queries <= size for t in found)
    for tile in found:
        assert visible_by_tile(tile) == visible_by_offsets(
            tile, query_offsets, key_offsets
        )


def visible_by_tile(tile: Tile) -> list[set[int]]:
    square = tile.key_stop - tile.queries
    starts = [0] * tile.queries if tile.starts is None else tile.starts.tolist()
    assert tile.starts is None or square == tile.key_start
    unmasked = set(range(tile.key_start, square))
    return [
        unmasked | set(range(square + start, square + i + 1))
        for i, start in enumerate(starts)
    ]


def visible_by_offsets(
    tile: Tile, query_offsets: np.ndarray, key_offsets: np.ndarray
) -> list[set[int]]:
    found = []
    for query in range(tile.query_start, tile.query_stop):
        document = np.searchsorted(query_offsets, query, side="right") - 1
        last = key_offsets[document + 1] - (query_offsets[document + 1] - query)
        found.append(set(range(key_offsets[document], last + 1)))
    return found


# ---- GPU kernels: what they are called with, seen through a stand-in that computes ---


def stand_in(calls: list[dict[str, Any]], result: Any) -> Any:
    """A function with FlashAttention's signature that checks its arguments and answers
    by the reference.
    """

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                               softmax_scale=None, causal=False, deterministic=False):  # fmt: skip
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert type(max_seqlen_q) is int and type(max_seqlen_k) is int
        calls.append(
            {
                "causal": causal,
                "deterministic": deterministic,
                "max": (max_seqlen_q, max_seqlen_k),
            }
        )
        return result(
            blocked_attention(
                q,
                k,
                v,
                tiles(cu_seqlens_q.numpy(), cu_seqlens_k.numpy()),
                softmax_scale,
            )
        )

    return flash_attn_varlen_func


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(name: str, **members: Any) -> None:
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.mark.parametrize(
    ("name", "module", "result"),
    [
        ("flash2", "flash_attn", lambda out: out),
        ("flash3", "flash_attn_interface", lambda out: (out, None)),
        ("flash4", "flash_attn.cute", lambda out: (out, None)),
    ],
)
def test_flash_kernels_get_offsets_lengths_and_causality(
    modules: Any, name: str, module: str, result: Any
) -> None:
    calls: list[dict[str, Any]] = []
    modules("flash_attn")
    modules(module, flash_attn_varlen_func=stand_in(calls, result))
    spec = VarlenSpec.build(np.array([0, 3, 10]), np.array([0, 8, 15]), "cpu")
    q, k, v = random_inputs(10, 15, 4, 2, 8, torch.float32)
    expected = varlen_attention(q, k, v, spec, resolve_kernel("reference", "cpu"), 0.5)
    kernel = resolve_kernel(name, "cuda")
    assert torch.equal(varlen_attention(q, k, v, spec, kernel, 0.5), expected)
    assert calls == [{"causal": True, "deterministic": False, "max": (7, 8)}]


def test_the_setting_reaches_the_kernel(modules: Any) -> None:
    """`engine.deterministic`, by what a run sets for as long as it goes on."""
    calls: list[dict[str, Any]] = []
    modules("flash_attn", flash_attn_varlen_func=stand_in(calls, lambda out: out))
    spec = VarlenSpec.build(np.array([0, 4]), np.array([0, 4]), "cpu")
    with deterministic_algorithms():
        varlen_attention(
            *random_inputs(4, 4, 1, 1, 8, torch.float32),
            spec,
            resolve_kernel("flash2", "cuda"),
            1.0,
        )
    assert not torch.are_deterministic_algorithms_enabled(), "it ends with the run"
    assert calls[0]["deterministic"] is True


def test_a_run_asks_for_what_repeats() -> None:
    """In a process of its own, as Megatron-Core is made ready for a host in it."""
    code = (
        "import torch\n"
        "from alia_ctx.config.run import EngineConfig\n"
        "from alia_ctx.mcore.runtime import Distributed\n"
        "asked = torch.are_deterministic_algorithms_enabled\n"
        "for wanted in (False, True):\n"
        "    with Distributed(EngineConfig(deterministic=wanted)):\n"
        "        assert asked() is wanted\n"
        "    assert not asked()\n"
    )
    done = python_on_a_host("-c", code, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_kernel_that_cannot_repeat_is_refused(modules: Any) -> None:
    def function(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                 softmax_scale=None, causal=False):  # type: ignore[no-untyped-def]  # fmt: skip
        return q

    modules("flash_attn", flash_attn_varlen_func=function)
    kernel = resolve_kernel("flash2", "cuda")
    with (
        deterministic_algorithms(),
        pytest.raises(LayoutError, match=r"no deterministic backward.*name another"),
    ):
        try_kernel(kernel, Heads(4, 2, 64, torch.bfloat16), "cpu")


@pytest.mark.parametrize("knows_gqa", [True, False])
def test_torch_varlen_gets_a_causal_window_and_grouped_heads(
    modules: Any, knows_gqa: bool
) -> None:
    seen: dict[str, Any] = {}

    def answer(q, k, v, cu_q, cu_k, scale):
        return blocked_attention(q, k, v, tiles(cu_q.numpy(), cu_k.numpy()), scale)

    def with_gqa(
        q,
        k,
        v,
        cu_q,
        cu_k,
        max_q,
        max_k,
        *,
        scale=None,
        window_size=(-1, -1),
        enable_gqa=False,
    ):
        seen.update(window=window_size, gqa=enable_gqa)
        return answer(q, k, v, cu_q, cu_k, scale)

    def without_gqa(
        q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
    ):
        seen.update(window=window_size, gqa=None)
        return answer(q, k, v, cu_q, cu_k, scale)

    modules(
        "torch.nn.attention.varlen", varlen_attn=with_gqa if knows_gqa else without_gqa
    )
    spec = VarlenSpec.build(np.array([0, 6]), np.array([0, 9]), "cpu")
    q, k, v = random_inputs(6, 9, 4, 2, 8, torch.float32)
    out = varlen_attention(q, k, v, spec, resolve_kernel("torch_varlen", "cuda"), 0.5)
    assert torch.equal(
        out, varlen_attention(q, k, v, spec, resolve_kernel("reference", "cpu"), 0.5)
    )
    assert seen == {"window": (-1, 0), "gqa": True if knows_gqa else None}


def test_installed_torch_has_the_varlen_arguments_that_we_pass() -> None:
    """Binds our call to the real signature:

    the kernel cannot run here, a renamed argument would show.
    """
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    inspect.signature(varlen_attn).bind(
        0, 0, 0, 0, 0, 1, 1, scale=1.0, window_size=(-1, 0)
    )


@pytest.mark.parametrize("name", ["flash2", "flash3", "flash4"])
def test_a_missing_kernel_names_package_and_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        LayoutError,
        match=rf"kernel {name} needs flash_attn\S*\.flash_attn_varlen_func.*name another",
    ):
        resolve_kernel(name, "cuda")
