"""What is planned: a model, its rows, how they are spread, and the GPU they run on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from alia_ctx.errors import ConfigError, LayoutError, Problem
from alia_ctx.spec.execution import GPU_LOSS_CHUNK, Precision, Recompute
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec

RECOMPUTE_MODES: tuple[Recompute, ...] = get_args(Recompute)
BYTES: dict[str, int] = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class GpuSpec:
    """One GPU and its links; the defaults are a 64 GB Hopper of MareNostrum 5 (four to a
    node, NDR200 each).

    `bf16_tflops` is the dense peak of the data sheet. `efficiency` is the share of it
    that a GPU is taken to reach while it computes and `overhead_gib` what CUDA, NCCL
    and fragmentation are taken to hold: both are guesses until measured, and so are the
    link speeds in GB/s (10^9 bytes) per GPU and direction.
    """

    memory_gib: float = 64.0
    bf16_tflops: float = 989.0
    efficiency: float = 0.5
    overhead_gib: float = 5.0
    gpus_per_node: int = 4
    node_gb_per_s: float = 300.0
    network_gb_per_s: float = 20.0

    def problems(self, key: str = "gpu") -> list[Problem]:
        """Values that make no sense."""
        found = [
            Problem(
                f"{key}.{name}",
                getattr(self, name),
                "must be positive",
                "see the GPU's data sheet",
            )
            for name in (
                "memory_gib",
                "bf16_tflops",
                "efficiency",
                "gpus_per_node",
                "node_gb_per_s",
                "network_gb_per_s",
            )
            if not getattr(self, name) > 0
        ]
        if self.efficiency > 1:
            found.append(
                Problem(
                    f"{key}.efficiency",
                    self.efficiency,
                    "is a share of the peak",
                    "use 0.3 to 0.6",
                )
            )
        if self.overhead_gib < 0:
            found.append(
                Problem(
                    f"{key}.overhead_gib",
                    self.overhead_gib,
                    "must not be negative",
                    "use 3 to 6",
                )
            )
        return found


@dataclass(frozen=True)
class Workload:
    """A stage's training as sizes.

    `tokens` is its budget, `update_tokens` what one update should hold.
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

    def check(self) -> None:
        """Raise ConfigError or LayoutError with all that is wrong."""
        positive = (
            "context",
            "world_size",
            "tokens",
            "update_tokens",
            "loss_chunk_tokens",
        )
        problems = [
            Problem(
                name,
                getattr(self, name),
                "must be at least 1",
                "give a number of tokens or ranks",
            )
            for name in positive
            if getattr(self, name) < 1
        ]
        if self.recompute not in RECOMPUTE_MODES:
            problems.append(
                Problem(
                    "recompute",
                    self.recompute,
                    "unknown",
                    f"use {', '.join(RECOMPUTE_MODES)}",
                )
            )
        if self.precision not in BYTES:
            problems.append(
                Problem(
                    "precision", self.precision, "unknown", f"use {', '.join(BYTES)}"
                )
            )
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
        return max(1, self.update_tokens // self.context)

    @property
    def tokens_per_update(self) -> int:
        return self.rows_per_update * self.context

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
    def layers_per_stage(self) -> int:
        """Decoder layers of one pipeline rank."""
        return self.model.num_hidden_layers // self.layout.pp

    @property
    def local_tokens(self) -> int:
        """Tokens of a row on a context-parallel rank."""
        return self.context // self.layout.cp
