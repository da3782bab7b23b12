"""Linear layers in chunks of tokens against upstream's at once and against dense products
in fp64, on a tensor-parallel group of all ranks, on hosts or GPUs.

All numbers are small whole ones, and so are all sums, which every type holds: whatever
order a sum is formed in, right results are the same to the bit, and a row or a chunk in a
wrong place is another result.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from alia_ctx.mcore.chunked_linear import (
    ChunkedColumnParallelLinear,
    ChunkedRowParallelLinear,
)
from alia_ctx.mcore.model import ModelOptions, transformer_config
from alia_ctx.mcore.runtime import Ranks
from alia_ctx.nn.dtypes import DTYPES
from alia_ctx.spec.execution import Precision
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.engine import MODEL

INNER, OUTER = 24, 40
KINDS: dict[str, tuple[Any, Any]] = {
    "column": (ColumnParallelLinear, ChunkedColumnParallelLinear),
    "row": (RowParallelLinear, ChunkedRowParallelLinear),
}


def differences(
    precision: Precision, tokens: int, chunks: int, *, batch: int = 1
) -> dict[str, float]:
    """Largest difference of each result, from upstream's and from the dense one; `tokens`
    are those of a rank. Needs an entered `Distributed`; all ranks are one group. Collective.
    """
    ranks = Ranks(Layout(tp=dist.get_world_size()), seed=0)
    found = {}
    for kind, (whole, in_chunks) in KINDS.items():
        theirs = _results(kind, whole, precision, tokens, batch, ranks)
        built = functools.partial(in_chunks, chunks=chunks)
        ours = _results(kind, built, precision, tokens, batch, ranks)
        dense = _dense(kind, precision, tokens, batch, ranks)
        for name, each in ours.items():
            for other, expected in (("upstream", theirs), ("dense", dense)):
                apart = (each.double() - expected[name].double()).abs().max()
                found[f"{kind} {name} {other}"] = float(apart)
    return found


def _results(
    kind: str,
    build: Any,
    precision: Precision,
    tokens: int,
    batch: int,
    ranks: Ranks,
) -> dict[str, Tensor]:
    """Output and gradients of this rank."""
    tp, rank, device = ranks.world_size, ranks.rank, ranks.device
    options = ModelOptions(precision, "reference", "none", False, device.type == "cuda")
    heads = {"num_attention_heads": tp, "num_key_value_heads": tp}
    model = ModelSpec(**{**MODEL, **heads})
    config = transformer_config(model, Layout(tp=tp), options)
    shared: dict[str, Any] = {
        "config": config,
        "init_method": lambda _: None,
        "tp_group": ranks.groups.tp,
        "bias": kind == "column",
        "skip_bias_add": kind == "row",
    }
    if kind == "column":
        layer = build(INNER, OUTER * tp, **shared)
    else:
        layer = build(INNER * tp, OUTER, input_is_parallel=True, **shared)
    layer = layer.to(device)
    given, weight, bias, upward = _numbers(kind, tp, tokens, batch)
    own = slice(rank * tokens, (rank + 1) * tokens)
    if kind == "column":
        inputs, gradient = given[own], upward.chunk(tp, dim=-1)[rank]
        layer.bias.data.copy_(bias.chunk(tp)[rank])
        layer.weight.data.copy_(weight.chunk(tp, dim=0)[rank])
    else:
        inputs, gradient = given.chunk(tp, dim=-1)[rank], upward[own]
        layer.weight.data.copy_(weight.chunk(tp, dim=1)[rank])
    dtype = DTYPES[precision]
    inputs = inputs.to(device, dtype).requires_grad_()
    output, _ = layer(inputs)
    assert output._base is None, "a view, which upstream's pipeline could not free"
    with torch.no_grad():
        assert torch.equal(layer(inputs)[0], output), "without gradients it is another"
    output.backward(gradient.to(device, dtype))
    results = {
        "output": output.detach(),
        "input": inputs.grad,
        "weight": layer.weight.grad,
    }
    if kind == "column":
        results["bias"] = layer.bias.grad
    return results


def _dense(
    kind: str, precision: Precision, tokens: int, batch: int, ranks: Ranks
) -> dict[str, Tensor]:
    """This rank's parts of one product in fp64 over all tokens and features."""
    tp, rank = ranks.world_size, ranks.rank
    parts = [each.double() for each in _numbers(kind, tp, tokens, batch)]
    given, weight, bias, upward = parts
    output = given @ weight.T + (bias if kind == "column" else 0)
    of_input = upward @ weight
    of_weight = upward.flatten(0, 1).T @ given.flatten(0, 1)
    own = slice(rank * tokens, (rank + 1) * tokens)
    if kind == "column":
        found = {
            "output": output.chunk(tp, dim=-1)[rank],
            "input": of_input[own],
            "weight": of_weight.chunk(tp, dim=0)[rank],
            "bias": upward.sum((0, 1)).chunk(tp)[rank],
        }
    else:
        found = {
            "output": output[own],
            "input": of_input.chunk(tp, dim=-1)[rank],
            "weight": of_weight.chunk(tp, dim=1)[rank],
        }
    assert all(float(each.abs().max()) <= 256 for each in found.values())
    return {name: each.to(ranks.device) for name, each in found.items()}


def _numbers(kind: str, tp: int, tokens: int, batch: int) -> tuple[Tensor, ...]:
    """(input, weight, bias, gradient of the output) of all ranks, on each of them alike."""
    generator = torch.Generator(device="cpu").manual_seed(tokens)
    wide = (INNER, OUTER * tp) if kind == "column" else (INNER * tp, OUTER)
    shapes = [
        (tp * tokens, batch, wide[0]),
        (wide[1], wide[0]),
        (wide[1],),
        (tp * tokens, batch, wide[1]),
    ]
    return tuple(
        torch.randint(-1, 2, shape, generator=generator, device="cpu").float()
        for shape in shapes
    )
