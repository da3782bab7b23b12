"""Tensor-parallel linear layers in chunks of tokens: one chunk travels between the ranks
while another is multiplied.

Upstream's own layers hide, in the backward of a column-parallel layer, the gathering of
its input behind the product for the input's gradient, and the scattering of that behind
the product for the weight's (megatron/core/tensor_parallel/layers.py); that stays theirs.
Here are the three places where they wait: the gathering before a column-parallel product
(Q, K, V; gate and up), the scattering of sums after a row-parallel one (projection, down),
and the gathering of the gradient in the backward of the latter. Of k chunks one is waited
for, the first that is gathered or the last that is scattered.

A token's product needs no other token's and a sum over ranks has the same terms, so that
nothing changes but which rows a kernel is given at once. The weight's gradient is one
product over all tokens, in upstream's order.

Letters: r ranks, s own tokens (a row is cut into r parts by sequence parallelism), c of a
chunk, i and o features in and out, on this rank. All tokens are those of rank 0, then 1
and on: [r, s, .], of which a chunk is [:, c], and its product is written into its place.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    LinearWithGradAccumulationAndAsyncCommunication,
    RowParallelLinear,
    custom_bwd,
    custom_fwd,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from alia_ctx.errors import LayoutError
from alia_ctx.spec.execution import Layers
from alia_ctx.spec.token_chunks import chunk_tokens

_UNDER_WAY = 2

Message = tuple[Tensor, dist.Work]


def take_linears_in_chunks(layer: ModuleSpec, layers: Layers, chunks: int) -> None:
    """Have the four linear layers of a decoder layer built as those below, in place of
    upstream's plain ones. The head has its own (`mcore/output_layer.py`).

    LayoutError for TransformerEngine's, which gather and scatter inside their products.
    """
    if layers == "te":
        raise LayoutError(
            "engine.tp_overlap_chunks: TransformerEngine's linear layers are not cut into "
            "chunks; set engine.layers=local, or leave it at 1"
        )
    column = functools.partial(ChunkedColumnParallelLinear, chunks=chunks)
    row = functools.partial(ChunkedRowParallelLinear, chunks=chunks)
    attention = layer.submodules.self_attention.submodules
    attention.linear_qkv, attention.linear_proj = column, row
    mlp = layer.submodules.mlp.keywords["submodules"]
    mlp.linear_fc1, mlp.linear_fc2 = column, row


class ChunkedColumnParallelLinear(ColumnParallelLinear):
    """Upstream's layer of weights cut by outputs, in at most `chunks` chunks of tokens;
    parameters and their names are upstream's. Needs sequence parallelism.
    """

    def __init__(self, *sizes: Any, chunks: int, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self.chunks = chunks

    def _forward_impl(
        self, input: Tensor, weight: Tensor, *, bias: Tensor | None, **ignored: Any
    ) -> Tensor:
        output: Tensor = _GatherAndMultiply.apply(
            input, weight, bias, self.tp_group, self.chunks
        )
        return output


class ChunkedRowParallelLinear(RowParallelLinear):
    """Upstream's layer of weights cut by inputs, in at most `chunks` chunks of tokens;
    parameters and their names are upstream's. Needs sequence parallelism.
    """

    def __init__(self, *sizes: Any, chunks: int, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self.chunks = chunks

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [r s, b, i] -> (sums over ranks [s, b, o], a bias to be added later)."""
        output = _MultiplyAndScatter.apply(
            input_, self.weight, self.tp_group, self.chunks
        )
        if self.bias is None or self.skip_bias_add:
            return output, self.bias
        return output + self.bias, None


def chunks_of(tokens: int, count: int) -> list[slice]:
    """`tokens` cut into at most `count` slices of one length, but for the last: whole tiles
    where a slice is longer than one.
    """
    length = chunk_tokens(tokens, count)
    return [slice(at, min(at + length, tokens)) for at in range(0, tokens, length)]


def _arriving(
    start: Callable[[slice], Message], parts: list[slice]
) -> Iterator[tuple[slice, Tensor]]:
    """Each part with what `start` set off for it, once that has arrived. The one behind it
    is on its way by then: what the caller does next hides it.
    """
    under_way: deque[tuple[slice, Message]] = deque()
    for part in parts:
        under_way.append((part, start(part)))
        if len(under_way) == _UNDER_WAY:
            yield _arrived(under_way)
    while under_way:
        yield _arrived(under_way)


def _arrived(under_way: deque[tuple[slice, Message]]) -> tuple[slice, Tensor]:
    part, (tensor, work) = under_way.popleft()
    work.wait()
    return part, tensor


class _GatherAndMultiply(torch.autograd.Function):
    """Input [s, b, i], weight [o, i] -> [r s, b, o]. Saves what upstream's does, and has its
    backward.
    """

    @staticmethod
    @custom_fwd  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        group: dist.ProcessGroup,
        chunks: int,
    ) -> Tensor:
        input = input.contiguous()
        ctx.save_for_backward(input, weight)
        ctx.use_bias, ctx.tp_group = bias is not None, group
        ctx.sequence_parallel, ctx.allreduce_dgrad = True, False
        ctx.gradient_accumulation_fusion, ctx.main_grad = False, None
        ctx.grad_output_buffer = ctx.wgrad_deferral_limit = None
        ctx.gtp_remat_size = 1

        ranks, own = group.size(), input.view(-1, input.shape[-1])
        output = own.new_empty((ranks * len(input), *input.shape[1:-1], len(weight)))
        places = output.view(ranks, len(own), len(weight))

        def gather(part: slice) -> Message:
            chunk = own[part]
            everyone = own.new_empty((ranks, *chunk.shape))
            work = dist.all_gather_into_tensor(
                everyone.flatten(0, 1), chunk, group=group, async_op=True
            )
            return everyone, work

        for part, everyone in _arriving(gather, chunks_of(len(own), chunks)):
            _product(everyone, weight.t(), places[:, part])
            if bias is not None:  # rounded twice, as upstream's is
                places[:, part].add_(bias)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        upstream = LinearWithGradAccumulationAndAsyncCommunication
        of_input, of_weight, of_bias = upstream.backward(ctx, gradient)[:3]
        return of_input, of_weight, of_bias, None, None


class _MultiplyAndScatter(torch.autograd.Function):
    """Input [r s, b, i], weight [o, i] -> sums over ranks [s, b, o]. Saves its input, as
    upstream's does.
    """

    @staticmethod
    @custom_fwd  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, group: dist.ProcessGroup, chunks: int
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.group, ctx.chunks = group, chunks
        ranks = group.size()
        everyone = input.reshape(ranks, -1, input.shape[-1])
        output = input.new_empty((len(input) // ranks, *input.shape[1:-1], len(weight)))
        own = output.view(-1, len(weight))
        under_way: deque[Message] = deque()
        for part in chunks_of(len(own), chunks):
            if len(under_way) == _UNDER_WAY:
                under_way.popleft()[1].wait()
            # Sums of this rank's features alone, for each rank's tokens.
            partial = own.new_empty((ranks, len(own[part]), len(weight)))
            _product(everyone[:, part], weight.t(), partial)
            work = dist.reduce_scatter_tensor(
                own[part], partial.flatten(0, 1), group=group, async_op=True
            )
            under_way.append((partial, work))
        for _, work in under_way:
            work.wait()
        return output

    @staticmethod
    @custom_bwd  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        group, ranks = ctx.group, ctx.group.size()
        own = gradient.contiguous().view(-1, gradient.shape[-1])
        whole = own.new_empty((ranks, *own.shape))
        of_input = torch.empty_like(input, memory_format=torch.contiguous_format)
        places = of_input.view(ranks, len(own), -1)

        def gather(part: slice) -> Message:
            # In the order of all tokens, as the weight's gradient needs them: a chunk of
            # each rank goes to a place of its own.
            everyone = whole[:, part]
            work = dist.all_gather(
                list(everyone.unbind()), own[part], group=group, async_op=True
            )
            return everyone, work

        for part, everyone in _arriving(gather, chunks_of(len(own), ctx.chunks)):
            _product(everyone, weight, places[:, part])
        of_weight = whole.flatten(0, 1).t().matmul(input.reshape(-1, input.shape[-1]))
        return of_input, of_weight, None, None


def _product(rows: Tensor, matrix: Tensor, out: Tensor) -> None:
    """[r, c, n] times [n, m] into [r, c, m], whose ranks may lie apart: one strided
    batched product, without a copy.
    """
    torch.bmm(rows, matrix.expand(len(rows), -1, -1), out=out)
