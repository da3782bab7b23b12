"""The model's output layer as the loss: whole logits never exist."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

from alia_ctx.errors import LayoutError
from alia_ctx.nn.linear_cross_entropy import TokenLosses, vocab_parallel_loss


class LossOutputLayer(torch.nn.Module):
    """Stands in the place of GPTModel's `output_layer`, over the same weight.

    Within `predicting(targets)` its forward yields the summed loss of the row; outside,
    the logits, as the layer that it wraps. Upstream reads the layer's `weight` for tied
    embeddings and its sharded state for checkpoints, so both are the wrapped layer's own
    and every name in a checkpoint stays what it was. As the weight is this module's, the
    hook by which DistributedDataParallel waits for a weight that is still being gathered
    (megatron/core/distributed/distributed_data_parallel.py) runs before each forward.

    Args:
        layer: upstream's layer, whose weight [v, H] may be None (tied, and given to
            `forward`).
        vocab_size: real entries; the rest of the shards is padding.
        chunk_tokens: tokens whose logits exist at a time; None for the device's default.
    """

    def __init__(
        self, layer: ColumnParallelLinear, vocab_size: int, chunk_tokens: int | None
    ) -> None:
        super().__init__()
        self.weight: torch.nn.Parameter | None = layer.weight
        self.vocab_size, self.chunk_tokens = vocab_size, chunk_tokens
        self.tp_group = layer.tp_group
        self.sequence_parallel: bool = layer.sequence_parallel
        # Methods, not the layer: as a submodule it would appear in the names.
        self._logits = layer.forward
        self.sharded_state_dict = layer.sharded_state_dict
        self._targets: Tensor | None = None
        self._weights: Tensor | None = None
        self._losses: TokenLosses | None = None

    @contextlib.contextmanager
    def predicting(
        self, targets_T: Tensor, weights_T: Tensor | None = None
    ) -> Iterator[None]:
        """Within it, `forward` predicts `targets_T` (int64 [T], those of this CP rank),
        whose losses count `weights_T` (fp32 [T]; None: 1) in the sum.
        """
        self._targets, self._weights, self._losses = targets_T, weights_T, None
        try:
            yield
        finally:
            self._targets = self._weights = None

    def take_losses(self) -> TokenLosses:
        """Token by token, what the last loss is made of; once for each forward."""
        losses, self._losses = self._losses, None
        if losses is None:
            raise LayoutError("the output layer has predicted nothing since asked last")
        return losses

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[Tensor, Any]:
        """Upstream's signature: hidden [T, 1, H] -> (loss [1, 1] or logits, bias).

        [1, 1] because GPTModel transposes the first two axes of what it takes for logits.
        """
        if self._targets is None:
            return self._logits(hidden, weight, runtime_gather_output)
        weight = self.weight if weight is None else weight
        if weight is None:
            raise LayoutError("a tied output layer needs the embedding's weight")
        loss, self._losses = vocab_parallel_loss(
            hidden,
            weight,
            self._targets,
            tp_group=self.tp_group,
            vocab_size=self.vocab_size,
            chunk_tokens=self.chunk_tokens,
            sequence_parallel=self.sequence_parallel,
            weights_T=self._weights,
        )
        return loss.view(1, 1), None
