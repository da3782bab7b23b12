"""What an attention kernel is held against before it is taken: packed documents of random
numbers, computed from the definition, densely, in fp64 and on the host. Nothing here is
shared with a kernel, nor with how one is called.

Shapes: Tq queries, Tk keys, h query heads, g key/value heads (h a multiple of g), d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

# The first document has fewer queries than keys, as where a chunk of a context-parallel
# row begins within one: its last query sees its last key. One is a single token.
QUERY_OFFSETS = (0, 7, 8, 24)
KEY_OFFSETS = (0, 20, 21, 37)

# Relative to the norm. A kernel in bf16 rounds its output once, and in the backward its
# softmax weights, the gradients of its scores and its results: three roundings (2**-9 each,
# 6e-3) bound all four kernels wherever tests/gpu compares them, and on these documents such
# roundings, made one after another in torch, come to 4e-3. 0.02 leaves thrice what was
# measured for other GPUs and releases; a mask that is off by a key, for the queries of one
# document, is 0.04 and more. fp16 rounds eight times finer. fp32 has the bound of fp16, as
# torch may be told to multiply with TF32, whose fraction is that of fp16.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2.5e-3, torch.float32: 2.5e-3}
NAMES = ("output", "queries' gradient", "keys' gradient", "values' gradient")


def wrong_results(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    queries: int,
    groups: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> str | None:
    """What `attend`, causal attention [Tq, h, d] of the documents of `QUERY_OFFSETS` and
    `KEY_OFFSETS` with a scale of d**-0.5, computes wrong and by how much, in words; None
    where it is right.

    `attend` gets q [Tq, h, d] and k, v [Tk, g, d] of `dtype` on `device`, the values as a
    view of a wider tensor, as the layer hands them over. Touches no global generator.
    Passes on what `attend` or its backward raises.
    """
    generator = torch.Generator().manual_seed(0)
    tokens, keys = QUERY_OFFSETS[-1], KEY_OFFSETS[-1]
    query, key, wide, gradient = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in (
            (tokens, queries, dim),
            (keys, groups, dim),
            (keys, 2 * groups, dim),
            (tokens, queries, dim),
        )
    )
    exact = _dense(query, key, wide[:, groups:], gradient)
    with torch.enable_grad():
        inputs = [part.to(device) for part in (query, key, wide)]
        inputs[2] = inputs[2][:, groups:]
        inputs = [part.detach().requires_grad_() for part in inputs]
        output = attend(*inputs)
        if output.shape != exact[0].shape or output.dtype != dtype:
            is_, wanted = [*output.shape], [*exact[0].shape]
            return f"output is {is_} of {output.dtype} and not {wanted} of {dtype}"
        gradients: tuple[Tensor | None, ...] = (None, None, None)
        if output.requires_grad:
            gradients = torch.autograd.grad(
                output, inputs, gradient.to(device), allow_unused=True
            )
    errors = [_error(*pair) for pair in zip((output, *gradients), exact, strict=True)]
    # Written so that a NaN is wrong.
    wrong = [n for n, error in enumerate(errors) if not error <= TOLERANCE[dtype]]
    if not wrong:
        return None
    words = ", ".join(f"{NAMES[n]} {errors[n]:.2g}" for n in wrong)
    return f"relative error of {words}; {TOLERANCE[dtype]:g} is allowed"


def _error(ours: Tensor | None, exact: Tensor) -> float:
    if ours is None:  # no way leads from the output back to it
        return 1.0
    return float((ours.detach().cpu().double() - exact).norm() / exact.norm())


def _dense(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor
) -> tuple[Tensor, ...]:
    """Output and gradients of query, key and value, fp64, by the whole matrix of scores."""
    with torch.enable_grad():
        parts = [part.double().requires_grad_() for part in (query, key, value)]
        shared = query.shape[1] // key.shape[1]
        q, k, v = parts[0], *(p.repeat_interleave(shared, 1) for p in parts[1:])
        scores = torch.einsum("qhd,khd->hqk", q, k) * query.shape[2] ** -0.5
        weights = scores.masked_fill(~_visible(), -torch.inf).softmax(-1)
        output = torch.einsum("hqk,khd->qhd", weights, v)
        return output.detach(), *torch.autograd.grad(output, parts, gradient.double())


def _visible() -> Tensor:
    """Whether a query (row) sees a key (column): of its document, and not after it."""
    seen = [[False] * KEY_OFFSETS[-1] for _ in range(QUERY_OFFSETS[-1])]
    documents = zip(pairwise(QUERY_OFFSETS), pairwise(KEY_OFFSETS), strict=True)
    for (first, end), (first_key, end_key) in documents:
        for query in range(first, end):
            for key in range(first_key, end_key - (end - 1 - query)):
                seen[query][key] = True
    return torch.tensor(seen)
