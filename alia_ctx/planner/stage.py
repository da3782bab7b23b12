"""The plan of a stage, and a small search for layouts that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from alia_ctx.errors import ConfigError
from alia_ctx.planner.memory import GIB, RankMemory, rank_memory
from alia_ctx.planner.rope_reach import RopeReach, rope_reach
from alia_ctx.planner.timing import (
    Timing,
    flops_per_token,
    seconds_at_mfu,
    spans_nodes,
    update_time,
)
from alia_ctx.planner.workload import (
    RECOMPUTE_MODES,
    Workload,
)
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.execution import GPU_LOSS_CHUNK, Precision, Recompute
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

# What is planned for where nobody says: MareNostrum 5's nodes of four Hopper GPUs.
HOPPER_NODES = ClusterSpec(ranks_per_node=4)


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs. `memory` has an entry per pipeline rank;

    `flops_per_token` is (linear, attention).
    """

    work: Workload
    cluster: ClusterSpec
    memory: tuple[RankMemory, ...]
    flops_per_token: tuple[float, float]
    timing: Timing
    reach: RopeReach

    @property
    def fullest(self) -> RankMemory:
        """The pipeline rank that needs most."""
        return max(self.memory, key=lambda rank: rank.total)

    @property
    def fits(self) -> bool:
        return self.fullest.total <= self.cluster.memory_gib

    @property
    def verdict(self) -> str:
        """One line: fits or not, the fullest rank and its largest item."""
        rank = self.fullest
        return (
            f"{'fits' if self.fits else 'does not fit'}: {rank.total:.1f} of "
            f"{self.cluster.memory_gib:g} GiB on pipeline "
            f"rank {rank.pipeline_rank}; the largest item is {rank.largest} with "
            f"{rank.items[rank.largest]:.1f} GiB"
        )

    @property
    def idle_ranks(self) -> int:
        """Data-parallel ranks without a row in an update."""
        return max(0, self.work.data_parallel - self.work.rows_per_update)

    @property
    def days(self) -> float:
        """Days of training for the stage at the estimated time of an update."""
        return self.timing.total * self.work.updates / 86_400

    @property
    def row_logits_gib(self) -> float:
        """What the fp32 logits of one row would take if anybody formed them."""
        return self.work.context * self.work.model.vocab_size * 4 / GIB

    def seconds_at_mfu(self, mfu: float) -> float:
        """Seconds of an update at a given model FLOPs utilisation of all GPUs."""
        return seconds_at_mfu(self.work, self.cluster, mfu)

    def days_at_mfu(self, mfu: float) -> float:
        """Days of the stage at a given model FLOPs utilisation."""
        return self.seconds_at_mfu(mfu) * self.work.updates / 86_400


@dataclass(frozen=True)
class LayoutChoice:
    """A layout that was tried: `reason` is empty where it can be used."""

    layout: Layout
    recompute: Recompute
    plan: StagePlan
    reason: str

    @property
    def usable(self) -> bool:
        return not self.reason


def plan_stage(
    model: ModelSpec,
    rope: RopeSpec,
    context: int,
    layout: Layout,
    world_size: int,
    tokens: int,
    update_tokens: int,
    recompute: Recompute = "none",
    precision: Precision = "bf16",
    cluster: ClusterSpec = HOPPER_NODES,
    loss_chunk_tokens: int = GPU_LOSS_CHUNK,
) -> StagePlan:
    """Plan a stage of `tokens` tokens in rows of `context`, `update_tokens` an update, on
    `world_size` GPUs.

    ConfigError for sizes that make no sense or a RoPE that lacks fields; LayoutError
    where the layout does not fit model, row or world.
    """
    if problems := cluster.problems():
        raise ConfigError("the cluster cannot be planned with", problems)
    work = Workload(
        model,
        context,
        layout,
        world_size,
        tokens,
        update_tokens,
        recompute,
        precision,
        loss_chunk_tokens,
    )
    work.check()
    return _plan(work, cluster, rope_reach(rope, model.head_dim, context))


def _plan(work: Workload, cluster: ClusterSpec, reach: RopeReach) -> StagePlan:
    memory = tuple(
        rank_memory(work, rank, cluster.overhead_gib) for rank in range(work.layout.pp)
    )
    return StagePlan(
        work, cluster, memory, flops_per_token(work), update_time(work, cluster), reach
    )


def suggest_layouts(
    model: ModelSpec,
    rope: RopeSpec,
    context: int,
    world_size: int,
    tokens: int,
    update_tokens: int,
    precision: Precision = "bf16",
    cluster: ClusterSpec = HOPPER_NODES,
    loss_chunk_tokens: int = GPU_LOSS_CHUNK,
) -> list[LayoutChoice]:
    """All layouts that divide model, row and world: first the usable ones, fastest first,
    then why the others fall.

    Each layout appears once, with the recomputation that is fastest among those that
    fit (full where none does).
    """
    start = plan_stage(
        model,
        rope,
        context,
        Layout(),
        world_size,
        tokens,
        update_tokens,
        "none",
        precision,
        cluster,
        loss_chunk_tokens,
    )
    choices = [
        _best_recompute(start, layout)
        for layout in _layouts(model, context, world_size)
    ]
    return sorted(
        choices, key=lambda choice: (not choice.usable, choice.plan.timing.total)
    )


def _layouts(model: ModelSpec, context: int, world_size: int) -> Iterator[Layout]:
    for tp in _divisors(model.num_key_value_heads):
        for cp in _divisors(context // 2):
            for pp in _divisors(model.num_hidden_layers):
                layout = Layout(tp, cp, pp)
                if layout.model_ranks <= world_size and not layout.problems(
                    "", model, context, world_size
                ):
                    yield layout


def _divisors(number: int) -> list[int]:
    return [
        divisor for divisor in range(1, min(number, 1024) + 1) if number % divisor == 0
    ]


def _best_recompute(start: StagePlan, layout: Layout) -> LayoutChoice:
    work = replace(start.work, layout=layout)
    plans = [
        _plan(replace(work, recompute=mode), start.cluster, start.reach)
        for mode in RECOMPUTE_MODES
    ]
    fitting = [plan for plan in plans if plan.fits] or plans[-1:]
    plan = min(fitting, key=lambda plan: plan.timing.total)
    return LayoutChoice(layout, plan.work.recompute, plan, _reason(plan))


def _reason(plan: StagePlan) -> str:
    if not plan.fits:
        return plan.verdict
    if plan.idle_ranks:
        return (
            f"{plan.idle_ranks} of {plan.work.data_parallel} data-parallel ranks "
            "have no row in an update"
        )
    if spans_nodes(plan.work.layout, plan.cluster):
        return f"tp={plan.work.layout.tp} leaves the node of {plan.cluster.ranks_per_node} GPUs"
    return ""
