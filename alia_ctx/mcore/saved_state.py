"""A model's weights, and its optimizer's state, written to disk and read under any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from alia_ctx.checkpoint.background_save import BackgroundSave, Staging
from alia_ctx.checkpoint.closed_pickles import closed_unpickling
from alia_ctx.checkpoint.dcp_store import StateReader, open_state
from alia_ctx.errors import CheckpointError
from alia_ctx.mcore.optimizer import StageOptimizer
from alia_ctx.mcore.owned_state import (
    owned_state,
    read_weights,
    table_keys,
)
from alia_ctx.mcore.runtime import Ranks


class SavedState:
    """What `MegatronEngine` saves and loads, by these names.

    Args:
        module: this rank's part of the model.
        optimizer: None of a model that is only measured.
        ranks: the groups of the layout.
        precision: of the weights.
        vocab_size: words of the model, without the padding of its tables.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: StageOptimizer | None,
        ranks: Ranks,
        *,
        vocab_size: int,
    ) -> None:
        self._module: Any = module
        self._optimizer, self._ranks = optimizer, ranks
        self._vocab_size = vocab_size
        self._staging = Staging()

    def begin_save(self, directory: Path, *, with_optimizer: bool) -> BackgroundSave:
        """As the engine's. Collective."""
        owned = None
        if self._optimizer is not None and with_optimizer:
            owned = self._optimizer.owned
        elif self._optimizer is not None:
            self._optimizer.gather_weights()
        state = owned_state(self._module.sharded_state_dict(), owned)
        return BackgroundSave(state, directory, self._staging)

    def load(self, directory: Path, *, with_optimizer: bool) -> None:
        """As the engine's. Collective."""
        model = self._module.sharded_state_dict()
        dp_cp = self._ranks.groups.dp_cp
        with self._ranks.loading(directory), open_state(directory) as reader:
            _check_tables(model, reader, self._vocab_size)
            if self._optimizer is None and dp_cp.rank() == 0:
                # What is exported is measured, in fp32 too: never the main weights.
                read_weights(model, reader)
        if self._optimizer is None:
            _pass_weights_on(self._module, dp_cp)
            return
        # Each rank reads the main weights of its own range, and `publish` brings it the
        # others': nobody reads the weights themselves.
        with self._ranks.loading(directory):
            with closed_unpickling(directory):
                common = dist_checkpointing.load_common_state_dict(str(directory))
            self._optimizer.load(
                directory,
                self._module.sharded_state_dict(),
                common.get("optimizer"),
                with_moments=with_optimizer,
            )
        self._optimizer.publish()


def _pass_weights_on(module: torch.nn.Module, group: dist.ProcessGroup) -> None:
    """From the first rank of `group`, which has read them, to those that hold the same part
    of the model. Collective.
    """
    first = dist.get_global_rank(group, 0)
    for parameter in module.parameters():
        dist.broadcast(parameter.data, first, group=group)


def _check_tables(model: dict[str, Any], reader: StateReader, vocab_size: int) -> None:
    """Upstream takes a vocabulary's table of any number of rows, as padding changes
    with tp, and leaves rows that are not there as they were
    (megatron/core/models/common/language_module/language_module.py). A checkpoint
    of a smaller vocabulary would thus load with rows that were never trained.
    """
    for key in table_keys(model):
        stored = reader.tensors.get(key)
        if stored is not None and stored[0][0] < vocab_size:
            raise CheckpointError(
                f"{key} has {stored[0][0]} rows for a vocabulary of {vocab_size}"
            )
