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

from alia_ctx.nn.free_memory import fill_free_memory

Packing = tuple[tuple[int, ...], tuple[int, ...]]
# Offsets of queries and of keys. In both the first document has fewer queries than keys, as
# where a chunk of a context-parallel row begins within one: its last query sees its last
# key. In the first packing one is a single token; the document of the second has several
# blocks each way in every kernel here (64 to 192 queries, 96 to 176 keys), so that what is
# carried from one to the next is seen. They are computed apart: in one norm with the long
# document, a mistake in a short one would be lost.
PACKINGS: tuple[Packing, ...] = (
    ((0, 7, 8, 24), (0, 20, 21, 37)),
    ((0, 200), (0, 270)),
)

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
    attend: Callable[[Tensor, Tensor, Tensor, Packing], Tensor],
    queries: int,
    groups: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> str | None:
    """What `attend`, causal attention [Tq, h, d] of the documents of one of `PACKINGS` with a
    scale of d**-0.5, computes wrong and by how much, in words; None where it is right.

    `attend` gets q [Tq, h, d] and k, v [Tk, g, d] of `dtype` on `device`, the values as a
    view of a wider tensor, as the layer hands them over, and the packing. Touches no global
    generator. Passes on what `attend` or its backward raises.
    """
    for packing in PACKINGS:
        wrong = _wrong(attend, packing, (queries, groups, dim), dtype, device)
        if wrong is not None:
            return wrong
    return None


def _wrong(
    attend: Callable[[Tensor, Tensor, Tensor, Packing], Tensor],
    packing: Packing,
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> str | None:
    queries, groups, dim = heads
    generator = torch.Generator().manual_seed(0)
    tokens, keys = (offsets[-1] for offsets in packing)
    query, key, wide, gradient = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in (
            (tokens, queries, dim),
            (keys, groups, dim),
            (keys, 2 * groups, dim),
            (tokens, queries, dim),
        )
    )
    exact = _dense(packing, query, key, wide[:, groups:], gradient)
    with torch.enable_grad():
        inputs = [part.to(device) for part in (query, key, wide)]
        inputs[2] = inputs[2][:, groups:]
        inputs = [part.detach().requires_grad_() for part in inputs]
        fill_free_memory(inputs)
        output = attend(inputs[0], inputs[1], inputs[2], packing)
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
    packing: Packing,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, ...]:
    """Output and gradients of query, key and value, fp64, by each document's whole matrix of
    scores.
    """
    with torch.enable_grad():
        parts = [part.double().requires_grad_() for part in (query, key, value)]
        shared = query.shape[1] // key.shape[1]
        q, k, v = parts[0], *(p.repeat_interleave(shared, 1) for p in parts[1:])
        outputs = []
        for asking, seen in zip(
            *(pairwise(offsets) for offsets in packing), strict=True
        ):
            scores = torch.einsum("qhd,khd->hqk", q[slice(*asking)], k[slice(*seen)])
            weights = (scores * query.shape[2] ** -0.5).masked_fill(
                ~_visible(asking[1] - asking[0], seen[1] - seen[0]), -torch.inf
            )
            outputs.append(
                torch.einsum("hqk,khd->qhd", weights.softmax(-1), v[slice(*seen)])
            )
        output = torch.cat(outputs)
        return output.detach(), *torch.autograd.grad(output, parts, gradient.double())


def _visible(queries: int, keys: int) -> Tensor:
    """Whether a query (row) sees a key (column) of its document: none after it, where the
    last of each are the same token.
    """
    last_key = torch.arange(queries)[:, None] + keys - queries
    return torch.arange(keys) <= last_key
