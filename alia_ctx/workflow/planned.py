"""A stage as the planner has it, for those that want one figure of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import get_args

import numpy as np

from alia_ctx.config.layouts import choose, search_settings
from alia_ctx.config.room import remedy, roomier
from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import row_lengths
from alia_ctx.data.packing.plan_files import load_arrays, read_statement
from alia_ctx.errors import AliaError
from alia_ctx.planner import RowSizes, StagePlan, plan_stage
from alia_ctx.spec.execution import Recompute
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.mixture import sizes_of


@dataclass(frozen=True)
class PackedStage:
    """The rows of a stage's pack plan: int64 [rows] query-key pairs and tokens of each, as
    they are computed, int64 [updates + 1] the first row of each update, the epochs that
    they are (1 where updates are of tokens), and int64 [rows] tokens of documents in each
    (default: all).
    """

    pairs: np.ndarray
    lengths: np.ndarray
    update_offsets: np.ndarray
    epochs: int = 1
    real_tokens: np.ndarray | None = None

    @property
    def row_sizes(self) -> RowSizes:
        real = self.lengths if self.real_tokens is None else self.real_tokens
        fill = self.lengths - real  # a document of its own to the kernel
        return RowSizes(
            round(float(self.lengths.mean())),
            int(self.lengths.max()),
            float(self.pairs.mean()),
            float(real.sum() / self.lengths.sum()),
            float((self.pairs - fill * (fill + 1) // 2).mean()),
        )

    @property
    def rows_per_update(self) -> int:
        """Of the mean update."""
        return max(1, round(len(self.lengths) / self.updates))

    @property
    def updates(self) -> int:
        return len(self.update_offsets) - 1


def packed_stage(run: RunConfig, name: str) -> PackedStage | None:
    """What the pack plan of a stage holds; None where there is none for this context, and
    for this size of an update where that is so many conversations. The bits are believed,
    as nothing is trained; where they are nonsense there is no plan.
    """
    stage = run.stage(name)
    with suppress(AliaError, OSError, LookupError, ValueError):
        statement = read_statement(run_directory(run).plan(name))
        identity = statement.identity
        if identity["row_length"] != stage.context:
            return None
        if identity.get("update_instances") != stage.update_instances:
            return None
        arrays = load_arrays(statement, verify=False)
        pairs, offsets = arrays["row_pairs"], arrays["update_offsets"]
        if not len(pairs):
            return None
        lengths = np.full(len(pairs), stage.context)
        pieces, firsts = arrays["piece_lengths"], arrays["row_offsets"][:-1]
        tokens = np.add.reduceat(pieces, firsts, dtype=np.int64)
        if stage.update_instances is not None:
            lengths = row_lengths(tokens, offsets, stage.context)
        epochs = identity.get("epochs") or 1
        return PackedStage(pairs, lengths, offsets, epochs, tokens)
    return None


def planning_sizes(
    run: RunConfig, name: str, packed: PackedStage | None
) -> tuple[int, int]:
    """(tokens, tokens of an update) to plan a stage with. Those of a plan of conversations
    have its fill in them, as it is computed; an epoch that is not packed yet is taken for
    one that is.
    """
    stage = run.stage(name)
    tokens, update_tokens, _ = sizes_of(run, name)
    if packed is None or stage.update_instances is None:
        return tokens, update_tokens
    in_update = packed.rows_per_update * packed.row_sizes.tokens
    updates = max(1, round(packed.updates * (stage.epochs or 1) / packed.epochs))
    return updates * in_update, in_update


def planned_stage(run: RunConfig, name: str) -> StagePlan:
    """A stage on its own layout and ranks, by the rows of its pack plan where there is one.
    AliaError where it cannot be planned.
    """
    stage, packed = run.stage(name), packed_stage(run, name)
    tokens, update_tokens = planning_sizes(run, name, packed)
    shared = search_settings(run, stage)
    del shared["shortest_row"]
    return plan_stage(
        *(run.model, stage.rope, stage.context, stage.layout),
        *(run.world_size(stage), tokens, update_tokens, stage.recompute),
        offload=run.engine.offload_activations,
        packed=None if packed is None else packed.row_sizes,
        **shared,
    )


def room_on_a_gpu(run: RunConfig, name: str, there: float) -> tuple[str, list[str]]:
    """Whether a stage fits the `there` GiB of a GPU, in the words of `plan`, and, where it may
    not or does not, what gives it room. AliaError where it cannot be planned.
    """
    run = replace(run, cluster=replace(run.cluster, memory_gib=there))
    plan = planned_stage(run, name)
    words = f"{plan.gpu_verdict} (by the planner)"
    if plan.fits_gpus:
        return words, []
    return words, [room_in_words(run, name)]


def room_in_words(run: RunConfig, name: str) -> str:
    """What gives a stage room on its cluster that has none: on its own layout, on another of
    as many GPUs, or on more.
    """
    for settings, other in smaller(run, name):
        less = planned_stage(other, name)
        # What a save copies is on the host with any of them.
        if less.fits_gpus and (less.fits or not less.work.offload):
            return f"{' '.join(settings)} takes {less.fullest.total:.1f}"
    gpus = run.world_size(run.stage(name))
    on_others = remedy(run, name, gpus, choose, opened=())
    return f"recomputation is not enough on this layout; {on_others}"


def recomputed(run: RunConfig, name: str) -> Iterator[RunConfig]:
    """The run with each recomputation of a stage from its own on, the least first."""
    stage, modes = run.stage(name), get_args(Recompute)
    for mode in modes[modes.index(stage.recompute) :]:
        stages = {**run.stages, name: replace(stage, recompute=mode)}
        yield replace(run, stages=stages)


def smaller(run: RunConfig, name: str) -> Iterator[tuple[list[str], RunConfig]]:
    """What makes the stage smaller on its layout, the cheapest first: more recomputation, and
    with all of it `roomier`.
    """
    settings: list[str] = []
    for other in islice(recomputed(run, name), 1, None):
        settings = [f"stages.{name}.recompute={other.stage(name).recompute}"]
        yield settings, (run := other)
    for more, other in roomier(run):
        yield [*settings, *more], other
