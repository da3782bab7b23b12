"""The plan of a stage on one layout: memory of GPUs and hosts, time, disk, and whether it
fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from alia_ctx.errors import ConfigError
from alia_ctx.planner.host import host_items
from alia_ctx.planner.kernels import why_untimed
from alia_ctx.planner.memory import (
    GIB,
    RankMemory,
    rank_memory,
)
from alia_ctx.planner.rope_reach import RopeReach, rope_reach
from alia_ctx.planner.timing import (
    Timing,
    flops_per_token,
    seconds_at_mfu,
    update_time,
)
from alia_ctx.planner.workload import RowSizes, Workload
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.compute_capability import capability_problems
from alia_ctx.spec.execution import (
    GPU_LOSS_CHUNK,
    AskedLayers,
    Fp8,
    Precision,
    Recompute,
)
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

# What is planned for where nobody says: MareNostrum 5's nodes of four Hopper GPUs.
HOPPER_NODES = ClusterSpec(ranks_per_node=4)


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs. `flops_per_token` is (linear, attention)."""

    work: Workload
    cluster: ClusterSpec
    flops_per_token: tuple[float, float]
    timing: Timing
    reach: RopeReach

    @cached_property
    def memory(self) -> tuple[RankMemory, ...]:
        """An entry per pipeline rank."""
        return tuple(map(self._rank_memory, range(self.work.layout.pp)))

    def _rank_memory(self, rank: int) -> RankMemory:
        return rank_memory(self.work.in_longest_rows, rank, self.cluster.overhead_gib)

    @cached_property
    def fullest(self) -> RankMemory:
        """The pipeline rank that needs most: the first, which has the embedding and most
        rows in flight, or the last, which has the head.
        """
        ends = {0, self.work.layout.pp - 1}
        return max(map(self._rank_memory, sorted(ends)), key=lambda rank: rank.total)

    @property
    def nodes(self) -> int:
        return -(-self.work.world_size // self.cluster.ranks_per_node)

    @cached_property
    def host_items(self) -> dict[str, float]:
        """GiB of the host memory of the node that needs most, by item."""
        return host_items(self.work, self.cluster)

    @property
    def host_gib(self) -> float:
        return sum(self.host_items.values())

    @property
    def _host_fits(self) -> bool:
        return self.host_gib <= self.cluster.host_memory_gib

    @property
    def fits(self) -> bool:
        """Whether GPUs and hosts have the memory, guesses among it."""
        return self.fits_gpus and self._host_fits

    @property
    def may_fit(self) -> bool:
        """Whether GPUs have memory for all that is counted, though not for the guesses too."""
        return self._may_fit_gpus and self._host_fits

    @property
    def fits_gpus(self) -> bool:
        """Whether GPUs have the memory, guesses among it."""
        return self.fullest.total <= self.cluster.memory_gib

    @property
    def _may_fit_gpus(self) -> bool:
        return (
            self._counted.without_guesses <= self.cluster.memory_gib
            and not self.fits_gpus
        )

    @cached_property
    def _counted(self) -> RankMemory:
        """The pipeline rank that needs most of what is counted."""
        ends = {0, self.work.layout.pp - 1}
        ranks = map(self._rank_memory, sorted(ends))
        return max(ranks, key=lambda rank: rank.without_guesses)

    @property
    def verdict(self) -> str:
        """One line: fits, may fit or not, the fullest rank and its largest item, or the hosts'
        where they alone are too small.
        """
        if self._host_fits or not (self.fits_gpus or self._may_fit_gpus):
            return self.gpu_verdict
        largest = max(self.host_items, key=lambda name: self.host_items[name])
        return (
            f"does not fit: {self.host_gib:.1f} of {self.cluster.host_memory_gib:g} GiB of "
            f"a node's host memory; the largest item is {largest} with "
            f"{self.host_items[largest]:.1f} GiB"
        )

    @property
    def gpu_verdict(self) -> str:
        """The same of GPUs' memory alone."""
        rank, there = self.fullest, round(self.cluster.memory_gib, 1)
        if self._may_fit_gpus:
            counted = self._counted
            guesses = counted.total - counted.without_guesses
            return (
                f"may fit: {counted.without_guesses:.1f} of {there:g} GiB on "
                f"pipeline rank {counted.pipeline_rank} are counted, and {guesses:.1f} more, "
                f"{counted.total:.1f}, are a guess (CUDA, NCCL, fragmentation: "
                "cluster.overhead_gib)"
            )
        word = "fits" if self.fits_gpus else "does not fit"
        return (
            f"{word}: {rank.total:.1f} of {there:g} GiB on pipeline "
            f"rank {rank.pipeline_rank}; the largest item is {rank.largest} with "
            f"{rank.peak_items[rank.largest]:.1f} GiB"
        )

    @property
    def idle_ranks(self) -> int:
        """Data-parallel ranks without a row in an update."""
        return max(0, self.work.data_parallel - self.work.rows_per_update)

    @property
    def untimed(self) -> str:
        """Why there is no estimate of its time, in words: then `timing` is that of a kernel
        it is not computed by. Empty where there is one.
        """
        return why_untimed(self.work.attention)

    @property
    def seconds(self) -> float:
        """Seconds of training for the stage at the estimated time of an update."""
        return self.timing.total * self.work.updates

    @property
    def days(self) -> float:
        return self.seconds / 86_400

    @property
    def node_hours(self) -> float:
        """Node-hours of the stage at the estimated time of an update."""
        return self.seconds / 3600 * self.nodes

    @property
    def checkpoint_gib(self) -> float:
        """A checkpoint on disk: weights, and main weights and moments in fp32."""
        bf16 = self.work.precision == "bf16"
        return self.work.model.parameters() * (14 if bf16 else 12) / GIB

    @property
    def masked_share(self) -> float | None:
        """Attention FLOPs of the plan's documents over those of one document a row; None
        where there is no plan.
        """
        packed = self.work.packed
        return None if packed is None else packed.pairs / self.work.causal_pairs

    @property
    def row_logits_gib(self) -> float:
        """What the fp32 logits of one row would take if anybody formed them."""
        return self.work.context * self.work.model.vocab_size * 4 / GIB

    def seconds_at_mfu(self, mfu: float) -> float:
        """Seconds of an update at a given model FLOPs utilisation of all GPUs."""
        return seconds_at_mfu(self.work.in_mean_rows, self.cluster, mfu)

    def days_at_mfu(self, mfu: float) -> float:
        """Days of the stage at a given model FLOPs utilisation."""
        return self.seconds_at_mfu(mfu) * self.work.updates / 86_400


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
    *,
    offload: bool = False,
    overlap: bool = True,
    packed: RowSizes | None = None,
    fp8: Fp8 = "off",
    fp8_bf16_layers: int = 0,
    mlp_chunk_tokens: int | None = None,
    layers: AskedLayers = "local",
    attention: str = "auto",
) -> StagePlan:
    """Plan a stage of `tokens` tokens in rows of `context`, `update_tokens` an update, on
    `world_size` GPUs; the rest is as in `Workload`.

    ConfigError for sizes that make no sense, what the cluster's GPU cannot compute, or a RoPE
    that lacks fields; LayoutError
    where the layout does not fit model, row or world.
    """
    asked = fp8, attention, layers
    if problems := [*cluster.problems(), *capability_problems(cluster, *asked)]:
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
        offload,
        overlap,
        packed,
        fp8,
        fp8_bf16_layers,
        mlp_chunk_tokens,
        layers,
        attention,
    )
    work.check()
    return plan_of(work, cluster, rope_reach(rope, model.head_dim, context))


def plan_of(work: Workload, cluster: ClusterSpec, reach: RopeReach) -> StagePlan:
    """The plan of a workload that has been checked."""
    mean = work.in_mean_rows
    return StagePlan(
        work, cluster, flops_per_token(mean), update_time(mean, cluster), reach
    )
