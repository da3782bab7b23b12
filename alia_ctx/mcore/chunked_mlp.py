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
        output: Tensor = super().forward(hidden)[0]
        return output

    def parts(self, tokens: int) -> Iterator[slice]:
        for start in range(0, tokens, self.chunk_tokens):
            yield slice(start, start + self.chunk_tokens)


class _Chunks(torch.autograd.Function):
    """Keeps its input alone. Weights' gradients are added to the fp32 ones chunk by chunk, as
    those of one row after another are.
    """

    @staticmethod
    def forward(ctx: Any, mlp: ChunkedMLP, hidden: Tensor, *weights: Tensor) -> Tensor:
        ctx.mlp = mlp
        ctx.save_for_backward(hidden)
        if is_checkpointing():  # computed again, for the graph alone
            return hidden.new_zeros(1).expand_as(hidden)
        return mlp.by_chunks(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (hidden,) = ctx.saved_tensors
        mlp: ChunkedMLP = ctx.mlp
        weights: list[Any] = list(mlp.parameters())
        back = torch.empty_like(hidden)
        for part in mlp.parts(len(hidden)):
            chunk = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                output = mlp.whole(chunk)
            back[part], *added = torch.autograd.grad(
                output, (chunk, *weights), gradient[part]
            )
            for weight, each in zip(weights, added, strict=True):
                weight.main_grad.add_(each)
        for weight in weights:
            # Upstream's hook leaves what it finds in `main_grad` and wants a gradient all
            # the same (megatron/core/distributed/distributed_data_parallel.py).
            weight.grad_added_to_main_grad = True
        return None, back, *(torch.zeros_like(weight) for weight in weights)
