"""Forward and backward of a stage's rows: rows become batches, upstream's schedule runs
them, losses come back.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from alia_ctx.data.packing import IGNORE, PackedRow
from alia_ctx.errors import DataError, LayoutError
from alia_ctx.mcore.attention import RowGeometry, row_geometry
from alia_ctx.mcore.output_layer import LossOutputLayer
from alia_ctx.mcore.padding import TokenPadding
from alia_ctx.mcore.runtime import Ranks
from alia_ctx.nn.context_parallel import Balance, Range
from alia_ctx.nn.linear_cross_entropy import TokenLosses
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.engine import RowLosses

_BLANK_MULTIPLE = 16  # of tokens of a chunk of a blank row: what kernels are tried with


@dataclass(frozen=True)
class Batch:
    """One row on this CP rank:

    t = T/cp tokens. `tokens` only where the pipeline starts, `targets` where it ends, and
    there `weights`, what each target's loss counts (None: 1).
    """

    row: PackedRow
    geometry: RowGeometry
    tokens: torch.Tensor | None
    targets: torch.Tensor | None
    weights: torch.Tensor | None = None


@dataclass(frozen=True)
class RowOnDevice:
    """What a forward found of one row on this rank, while it is still on the device."""

    row: PackedRow
    ranges: tuple[Range, ...]
    targets: torch.Tensor
    losses: TokenLosses
    weights: torch.Tensor | None = None

    def to_host(self) -> RowLosses:
        return RowLosses(
            row=self.row,
            ranges=self.ranges,
            values=self.losses.values.cpu().numpy(),
            predicted=self.targets.cpu().numpy() >= 0,
            hits=self.losses.hits.cpu().numpy(),
            weights=None if self.weights is None else self.weights.cpu().numpy(),
        )


class ForwardBackward:
    """Runs rows of at most `context` tokens through `chunk`, forward alone or with backward.

    Args:
        chunk: what upstream's schedules drive: this rank's module in its wrappers.
        output_layer: the module's, on the last pipeline rank; None elsewhere.
        ranks: where this rank stands.
        vocab_size: rows of the model's vocabulary; ids outside are refused on the host,
            as upstream's embedding reads past its table, or zeroes them under tp, without
            a word (megatron/core/tensor_parallel/layers.py, VocabParallelEmbedding).
        rope, head_dim: of the rotations of a row's tokens.
        balance: how a row is cut over context-parallel ranks; None for the zigzag.
        forward_context: entered around each forward; decides where activations are kept.
        padding: of the tokens that enter `chunk`.
    """

    def __init__(
        self,
        chunk: torch.nn.Module,
        output_layer: LossOutputLayer | None,
        ranks: Ranks,
        *,
        context: int,
        vocab_size: int,
        rope: RopeSpec,
        head_dim: int,
        balance: Balance | None,
        forward_context: Callable[[], contextlib.AbstractContextManager[Any]],
        padding: TokenPadding,
    ) -> None:
        self.chunk, self.output_layer, self.ranks = chunk, output_layer, ranks
        self.context, self.vocab_size = context, vocab_size
        self.forward_context, self.padding = forward_context, padding
        self._geometry = functools.partial(
            row_geometry,
            context=context,
            cp=ranks.groups.cp.size(),
            cp_rank=ranks.groups.cp.rank(),
            rope=rope,
            head_dim=head_dim,
            device=ranks.device,
            balance=balance,
        )

    def rows(self, rows: Sequence[PackedRow], *, forward_only: bool) -> list[RowLosses]:
        """Losses of `rows`, which are of one length, where this rank reports them; a rank
        without rows runs a short one that predicts nothing. Collective.
        """
        rows = list(rows) or [PackedRow.from_documents([], self.blank_length)]
        lengths = {row.length for row in rows}
        if len(lengths) > 1:
            raise LayoutError(
                f"rows of {sorted(lengths)} tokens cannot pass the pipeline together; "
                "run those of one length at a time"
            )
        batches = (self.batch(row) for row in rows)
        done = self.batches(
            batches, len(rows), forward_only=forward_only, length=rows[0].length
        )
        return [row.to_host() for row in done] if self.ranks.reports_losses else []

    @property
    def blank_length(self) -> int:
        """Tokens of the row of a data-parallel rank that has none: whatever parallelism cuts
        it for, and not the context. All of it is fill, which attention takes for one
        document, so that a row of the context would cost such a rank more than the rows of
        short documents cost the others. The ranks of its pipeline have no row either.
        """
        tp, cp = self.ranks.groups.tp.size(), self.ranks.groups.cp.size()
        return min(_BLANK_MULTIPLE * tp * (2 * cp if cp > 1 else 1), self.context)

    def batches(
        self,
        batches: Iterable[Batch],
        count: int,
        *,
        forward_only: bool,
        length: int | None = None,
    ) -> list[RowOnDevice]:
        """Drive upstream's schedule over `count` batches of rows of `length` tokens (the
        context). Collective.

        What is returned is on the last pipeline rank alone, in the order of the batches.
        """
        cp = self.ranks.groups.cp.size()
        tokens = self.padding.padded((length or self.context) // cp)
        return get_forward_backward_func()(
            forward_step_func=self._step,
            data_iterator=iter(batches),
            model=[self.chunk],
            num_microbatches=count,
            seq_length=tokens * cp,
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def batch(self, row: PackedRow) -> Batch:
        """This CP rank's part of a row: only its chunks are read and turned into tensors."""
        geometry = self._geometry(row.doc_offsets, row_length=row.length)

        def local(read: Callable[[int, int], np.ndarray]) -> np.ndarray:
            return np.concatenate([read(a, b) for a, b in geometry.rank.ranges])

        tokens = targets = weights = None
        if self.ranks.is_first_pp_rank:
            ids = local(row.tokens)
            self._check_vocabulary(row, ids)
            tokens = torch.from_numpy(ids).to(self.ranks.device)[None]
        if self.ranks.is_last_pp_rank:
            ids = local(row.targets)
            self._check_vocabulary(row, ids[ids != IGNORE])
            targets = torch.from_numpy(ids).to(self.ranks.device)
            if row.piece_weights is not None:
                counts = torch.from_numpy(local(row.loss_weights))
                weights = counts.to(self.ranks.device)
        return Batch(row, geometry, tokens, targets, weights)

    def _check_vocabulary(self, row: PackedRow, ids: np.ndarray) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            outside = ids[(ids < 0) | (ids >= self.vocab_size)]
            raise DataError(
                f"row {row.index}: token id {int(outside[0])} is outside the model's "
                f"vocabulary of {self.vocab_size}; tokenize with this model's tokenizer"
            )

    def forward(self, batch: Batch, chunk: torch.nn.Module) -> torch.Tensor:
        """What `chunk` makes of a batch, and of its padding behind it."""
        ids = self.padding.inputs(len(batch.geometry.cos), batch.tokens)
        output: torch.Tensor = chunk(ids, None, None, packed_seq_params=batch.geometry)
        return output

    def _step(
        self, batches: Iterator[Batch], chunk: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        """One batch, as upstream's schedules want it: the output of `chunk`, and a function
        of it that gives loss, number of predicted tokens, and what is returned in the end.
        """
        batch, layer = next(batches), self.output_layer
        with self.forward_context():
            if layer is None or batch.targets is None:
                return self.forward(batch, chunk), _no_loss
            targets = self.padding.targets(batch.targets)
            with layer.predicting(targets, self.padding.weights(batch.weights)):
                output = self.forward(batch, chunk)
        tokens, losses = len(batch.targets), layer.take_losses()
        losses = TokenLosses(losses.values[:tokens], losses.hits[:tokens])
        ranges = batch.geometry.rank.ranges
        done = RowOnDevice(batch.row, ranges, batch.targets, losses, batch.weights)
        predicted = torch.sum(batch.targets >= 0).to(torch.int32)
        return output, lambda loss: (loss.view(()), predicted, done)


def _no_loss(output: torch.Tensor) -> Any:
    raise LayoutError("upstream asks for a loss on the last pipeline rank alone")
