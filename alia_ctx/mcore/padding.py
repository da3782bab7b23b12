"""Padding of a rank's tokens to a multiple that FP8 products take.

It stands behind all tokens that a context-parallel rank holds of a row, never between
documents. A padded token is a zero vector from the embedding on: norms and products
without biases leave it zero, it takes no part in attention (`PackedAttention`) and
predicts nothing, so that its gradients are zero too. It thus changes no sum, no
largest number by which FP8 is scaled, and no count.

Letters: t tokens of this context-parallel rank, p those with padding; under tensor
parallelism each rank holds p/tp of the hidden states, in the order of its ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from alia_ctx.data.packing import IGNORE


class TokenPadding:
    """Pads what goes into `module` so that each of `tp`'s ranks holds a multiple of
    `multiple` tokens.
    """

    def __init__(
        self, module: GPTModel, tp: dist.ProcessGroup, multiple: int = 1
    ) -> None:
        self.tp, self.multiple = tp, multiple
        self._tokens = 0
        if module.pre_process:
            module.embedding.register_forward_hook(self._zeros_for_padding)

    def padded(self, tokens: int) -> int:
        """p of t."""
        unit = self.multiple * self.tp.size()
        return -(-tokens // unit) * unit

    def inputs(self, tokens: int, ids: Tensor | None) -> Tensor | None:
        """Ids [1, t] of the next forward, padded to [1, p]; which ids does not matter."""
        self._tokens = tokens
        return self._longer(ids, tokens, 0)

    def targets(self, targets_T: Tensor) -> Tensor:
        """Targets [t] padded to [p]: nothing is predicted there."""
        longer = self._longer(targets_T, len(targets_T), IGNORE)
        assert longer is not None
        return longer

    def weights(self, weights_T: Tensor | None) -> Tensor | None:
        """Weights [t] of the targets, padded to [p]."""
        return self._longer(weights_T, 0 if weights_T is None else len(weights_T), 0)

    def _longer(self, values: Tensor | None, tokens: int, value: int) -> Tensor | None:
        surplus = self.padded(tokens) - tokens
        if values is None or not surplus:
            return values
        return torch.nn.functional.pad(values, (0, surplus), value=value)

    def _zeros_for_padding(self, module: Any, inputs: Any, hidden: Tensor) -> Tensor:
        """A forward hook of the embedding: hidden [p/tp, 1, H] with zeros for padding."""
        share = len(hidden)
        first = self.tp.rank() * share  # sequence parallelism cuts in order of ranks
        real = min(max(self._tokens - first, 0), share)
        if real == share:
            return hidden
        return torch.nn.functional.pad(hidden[:real], (0, 0, 0, 0, 0, share - real))
