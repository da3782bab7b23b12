"""Rows read by transformers, for models of families that the engine has not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alia_ctx.config.run import EngineConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import CheckpointError
from alia_ctx.train.engine import RowLosses
from alia_ctx.train.rendezvous import World


class TransformersScorer(World):
    """A `Scorer`: the whole model on each rank, which are all data-parallel, and each
    document of a row by itself.
    """

    def __init__(self, hf_dir: Path, engine: EngineConfig) -> None:
        from alia_ctx.hf.scoring import CausalModel

        self._where = hf_dir
        self._model = CausalModel(hf_dir, engine.precision)
        self.data_parallel_rank = self.rank
        self.data_parallel_size = self.world_size

    def try_length(self, tokens: int) -> None:
        """CheckpointError, on every rank, where the model cannot read so many tokens: what
        else it says of itself, nobody knows beforehand. Collective.
        """
        reason = None
        try:
            self._model.losses_and_hits(np.full(tokens, 1, np.int64))
        except Exception as error:  # whatever a model's own code raises
            reason = str(error).strip().split("\n")[0] or type(error).__name__
        reasons = [r for r in self.gather_objects(reason) if r]
        if reasons:
            raise CheckpointError(
                f"{self._where}: transformers cannot run this model on {tokens:,} tokens "
                f"({reasons[0]}); ask for a shorter --context, or leave it out"
            )

    def row_losses(self, rows: Sequence[PackedRow]) -> tuple[RowLosses, ...]:
        """Losses and hits of `rows`, all of them on this rank."""
        return tuple(self._row(row) for row in rows)

    def _row(self, row: PackedRow) -> RowLosses:
        tokens = row.tokens()
        predicted = row.targets() >= 0
        values = np.zeros(row.length, np.float32)
        hits = np.zeros(row.length, bool)
        for start, stop in zip(row.doc_offsets[:-1], row.doc_offsets[1:], strict=True):
            if stop - start > 1:
                scored = self._model.losses_and_hits(tokens[start:stop])
                values[start : stop - 1], hits[start : stop - 1] = scored
        values[~predicted] = 0.0
        return RowLosses(row, ((0, row.length),), values, predicted, hits & predicted)
