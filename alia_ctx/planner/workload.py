"""What is planned: a model, its rows, and how they are spread over GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

from alia_ctx.errors import ConfigError, LayoutError, Problems
from alia_ctx.spec.execution import (
    GPU_LOSS_CHUNK,
    AskedLayers,
    Fp8,
    Precision,
    Recompute,
)
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec

RECOMPUTE_MODES: tuple[Recompute, ...] = get_args(Recompute)
BYTES: dict[str, int] = {"bf16": 2, "fp32": 4}
_COUNTS = ("context", "world_size", "tokens", "update_tokens", "loss_chunk_tokens")


@dataclass(frozen=True)
class RowSizes:
    """Rows of a stage's pack plan, as they are computed, fill included.

    Args:
        tokens: of the mean row.
        longest: tokens of the longest row.
        pairs: visible query-key pairs of the mean row.
        fill: share of the tokens that are of documents.
        useful_pairs: pairs of the documents alone (default: all).
    """

    tokens: int
    longest: int
    pairs: float
    fill: float = 1.0
    useful_pairs: float | None = None


@dataclass(frozen=True)
class Workload:
    """A stage's training as sizes.

    Args:
        tokens: its budget.
        update_tokens: what one update should hold.
        offload: whether activations wait for the backward in host memory.
        overlap: whether gradients are reduced beside the last row's backward, and
            weights gathered beside the first row's forward.
        packed: the rows of its pack plan: those of conversations are as long as their
            update needs. None takes rows of the context and one document a row, which
            is the most that there can be.
        fp8: whether, and how scaled, the layers' products are in FP8.
        fp8_bf16_layers: first layers that are not, and as many last ones.
        mlp_chunk_tokens: tokens of a row whose MLP exists at a time where layers are
            recomputed in full; None takes all.
        layers: whose layers; `auto` is TransformerEngine's where they are installed, which
            is not known here.
        attention: the kernel of a GPU that computes attention, where it is known; `auto` is
            one as fast as the cluster's `attention_efficiency` has it.
    """

    model: ModelSpec
    context: int
    layout: Layout
    world_size: int
    tokens: int
    update_tokens: int
    recompute: Recompute = "none"
    precision: Precision = "bf16"
    loss_chunk_tokens: int = GPU_LOSS_CHUNK
    offload: bool = False
    overlap: bool = True
    packed: RowSizes | None = None
    fp8: Fp8 = "off"
    fp8_bf16_layers: int = 0
    mlp_chunk_tokens: int | None = None
    layers: AskedLayers = "local"
    attention: str = "auto"

    def check(self) -> None:
        """Raise ConfigError or LayoutError with all that is wrong."""
        problems = Problems()
        for name in _COUNTS:
            remedy = "give a number of tokens or ranks"
            count = getattr(self, name)
            problems.need(count >= 1, name, count, "must be at least 1", remedy)
        for name, value, known in (
            ("recompute", self.recompute, RECOMPUTE_MODES),
            ("precision", self.precision, BYTES),
        ):
            remedy = f"use {', '.join(known)}"
            problems.need(value in known, name, value, "unknown", remedy)
        problems += self.model.problems()
        if problems:
            raise ConfigError("the stage cannot be planned", problems)
        broken = self.layout.problems(
            "layout", self.model, self.context, self.world_size
        )
        if broken:
            raise LayoutError(
                "\n  ".join(["the layout does not fit", *map(str, broken)])
            )

    @cached_property
    def bytes(self) -> int:
        """Bytes of a weight or activation."""
        return BYTES[self.precision]

    @cached_property
    def data_parallel(self) -> int:
        return self.layout.data_parallel(self.world_size)

    @cached_property
    def rows_per_update(self) -> int:
        """Whole rows that `update_tokens` pays for, and at least one."""
        return max(1, self.update_tokens // self.row_tokens)

    @property
    def row_tokens(self) -> int:
        """Tokens of the mean row, fill included."""
        return self.context if self.packed is None else self.packed.tokens

    @property
    def tokens_per_update(self) -> int:
        return self.rows_per_update * self.row_tokens

    @property
    def updates(self) -> int:
        """Updates that reach the budget; the last is full too."""
        return math.ceil(self.tokens / self.tokens_per_update)

    @cached_property
    def rows_per_rank(self) -> tuple[int, int]:
        """(fewest, most) rows of an update on a data-parallel rank."""
        return self.rows_per_update // self.data_parallel, math.ceil(
            self.rows_per_update / self.data_parallel
        )

    @property
    def causal_pairs(self) -> float:
        """Query-key pairs of a row that is one document."""
        return self.row_tokens * (self.row_tokens + 1) / 2

    @property
    def pairs_per_row(self) -> float:
        """Query-key pairs of a row, as its documents mask them."""
        return self.causal_pairs if self.packed is None else self.packed.pairs

    @property
    def in_mean_rows(self) -> Workload:
        """What the time is that of: every row is the mean one."""
        return self.in_rows_of(self.row_tokens)

    @property
    def in_longest_rows(self) -> Workload:
        """What the memory has to do for: every row is the longest one."""
        return self.in_rows_of(
            self.context if self.packed is None else self.packed.longest
        )

    def in_rows_of(self, tokens: int) -> Workload:
        """As many rows, updates and query-key pairs, with rows of so many tokens."""
        if self.packed is None or tokens == self.context == self.row_tokens:
            return self
        return replace(
            self,
            context=tokens,
            tokens=self.updates * self.rows_per_update * tokens,
            update_tokens=self.rows_per_update * tokens,
            packed=replace(self.packed, tokens=tokens, longest=tokens),
        )

    @property
    def te_layers(self) -> bool:
        """Whether the layers are certain to be TransformerEngine's: no others have FP8."""
        return self.layers == "te" or self.fp8 != "off"

    @property
    def layers_per_stage(self) -> int:
        """Decoder layers of one pipeline rank."""
        return self.model.num_hidden_layers // self.layout.pp

    def fp8_layers(self, pipeline_rank: int) -> int:
        """Layers of a pipeline rank whose products are in FP8."""
        if self.fp8 == "off":
            return 0
        ends = (pipeline_rank == 0) + (pipeline_rank == self.layout.pp - 1)
        return max(0, self.layers_per_stage - ends * self.fp8_bf16_layers)

    @property
    def layers_of_rank(self) -> float:
        """Layers of one pipeline rank on average: of others' models that do not divide."""
        return self.model.num_hidden_layers / self.layout.pp

    @property
    def local_tokens(self) -> int:
        """Tokens of a row on a context-parallel rank."""
        return self.context // self.layout.cp
