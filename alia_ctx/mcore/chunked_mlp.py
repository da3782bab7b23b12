"""The MLP of recomputed layers in chunks of tokens, so that gate, up and their gradients
exist for one chunk at a time.

A token's MLP needs no other token's. The forward goes through it by chunks; when a layer
is computed again for its backward its MLP is left out, as nobody needs what it yields
but its gradient's way back; and the backward computes and goes back through one chunk
after the other. So each product is computed as often as without chunks.

Letters: s tokens of hidden states on this rank (cut by sequence parallelism under tp,
where every rank takes chunks alike, so that what a chunk gathers is one of each).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.tensor_parallel.random import is_checkpointing
from megatron.core.transformer.mlp import MLP
from torch import Tensor


class ChunkedMLP(MLP):
    """Upstream's MLP, by chunks of `chunk_tokens` tokens [s, 1, H]; its weights and their
    names are upstream's. Training it needs upstream's DistributedDataParallel around it.
    """

    chunk_tokens: int = 0

    def forward(
        self, hidden_states: Tensor, per_token_scale: None = None, **ignored: Any
    ) -> tuple[Tensor, None]:
        """Upstream's signature: hidden [s, 1, H] -> (the MLP of it, no bias)."""
        if torch.is_grad_enabled():
            return _Chunks.apply(self, hidden_states, *self.parameters()), None
        return self.by_chunks(hidden_states), None

    def by_chunks(self, hidden: Tensor) -> Tensor:
        """The MLP of hidden [s, 1, H], without gradients."""
        output = torch.empty_like(hidden)
        for part in self.parts(len(hidden)):
            output[part] = self.whole(hidden[part])
        return output

    def whole(self, hidden: Tensor) -> Tensor:
        """The MLP of a chunk at once."""
        output, bias = super().forward(hidden)
        assert bias is None, "a bias would be lost: the layers have none"
        return output

    def parts(self, tokens: int) -> Iterator[slice]:
        for start in range(0, tokens, self.chunk_tokens):
            yield slice(start, start + self.chunk_tokens)


class _Chunks(torch.autograd.Function):
    """Keeps its input alone. Weights' gradients are added to the fp32 ones chunk by chunk, as
    those of one row after another are; the last chunk's are its own gradients.
    """

    @staticmethod
    def forward(ctx: Any, mlp: ChunkedMLP, hidden: Tensor, *weights: Tensor) -> Tensor:
        ctx.mlp = mlp
        ctx.save_for_backward(hidden)
        # Computed again, for the graph alone. Upstream recomputes in training only; its mark
        # stays where an error ended a layer (megatron/core/tensor_parallel/random.py).
        if mlp.training and is_checkpointing():
            return hidden.new_zeros(1).expand_as(hidden)
        return mlp.by_chunks(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (hidden,) = ctx.saved_tensors
        mlp: ChunkedMLP = ctx.mlp
        weights: list[Any] = list(mlp.parameters())
        back = torch.empty_like(hidden)
        last: list[Tensor] = []
        for part in mlp.parts(len(hidden)):
            if last:  # of the chunk before, of whose gradients nothing stays
                for weight in reversed(weights):
                    weight.main_grad.add_(last.pop())
            last += _back(mlp, hidden[part], gradient[part], back[part], weights)
        # Those of the last chunk go upstream's way: its hook adds them, and knows that the
        # weights are done (megatron/core/distributed/distributed_data_parallel.py).
        return None, back, *last


def _back(
    mlp: ChunkedMLP, hidden: Tensor, gradient: Tensor, back: Tensor, weights: list[Any]
) -> tuple[Tensor, ...]:
    """Gradients of `weights` by a chunk; that of its input is written to `back`."""
    chunk = hidden.detach().requires_grad_()
    with torch.enable_grad():
        output = mlp.whole(chunk)
    of_chunk, *of_weights = torch.autograd.grad(output, (chunk, *weights), gradient)
    back.copy_(of_chunk)
    return tuple(of_weights)
