"""Time of an update, from FLOPs at a guessed efficiency and bytes over links; good for
ordering, not for promises.

Nothing is taken to overlap, so the communication is an upper bound and the order of
layouts errs against those that communicate most.
"""

from __future__ import annotations

from dataclasses import dataclass

from alia_ctx.planner.memory import rank_parameters
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout

_TERA, _GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Timing:
    """Seconds of an update on the slowest rank.

    `mfu` is useful FLOPs over the peak of all GPUs in that time.
    """

    compute: float
    tensor_parallel: float
    context_parallel: float
    data_parallel: float
    pipeline_idle: float
    mfu: float

    @property
    def total(self) -> float:
        return (
            self.compute
            + self.tensor_parallel
            + self.context_parallel
            + self.data_parallel
            + self.pipeline_idle
        )


def flops_per_token(work: Workload) -> tuple[float, float]:
    """(matrix products with weights, causal attention) FLOPs per token, forward and
    backward, for one document a row.

    Shorter documents attend less: this is the upper end.
    """
    return work.model.linear_flops_per_token(), work.model.attention_flops(
        [work.context]
    ) / work.context


def seconds_at_mfu(work: Workload, cluster: ClusterSpec, mfu: float) -> float:
    """Seconds of an update if useful FLOPs run at `mfu` of all GPUs' peak."""
    return (
        sum(flops_per_token(work))
        * work.tokens_per_update
        / (work.world_size * cluster.peak_tflops * _TERA * mfu)
    )


def update_time(work: Workload, cluster: ClusterSpec) -> Timing:
    """Time of an update: 1F1B over the rows of the busiest data-parallel rank, then the
    gradients' reduction.
    """
    rows = max(1, work.rows_per_rank[1])
    compute = _row_flops(work) / (
        work.layout.tp
        * work.layout.cp
        * cluster.peak_tflops
        * _TERA
        * cluster.efficiency
    )
    tensor, context = _tensor_seconds(work, cluster), _context_seconds(work, cluster)
    data = _data_seconds(work, cluster)
    idle = (work.layout.pp - 1) * (compute + tensor + context)
    total = rows * (compute + tensor + context) + idle + data
    return Timing(
        rows * compute,
        rows * tensor,
        rows * context,
        data,
        idle,
        seconds_at_mfu(work, cluster, 1.0) / total,
    )


def _row_flops(work: Workload) -> float:
    """FLOPs of a row on the slowest pipeline rank (the last, which has the head),
    recomputation included.

    FlashAttention's backward forms the scores again: 3.5 forward's worth in all instead of 3.
    """
    model, pp = work.model, work.layout.pp
    head = 6.0 * model.embedding_parameters()
    linear = model.linear_flops_per_token() - head
    attention = model.attention_flops([work.context]) / work.context * 3.5 / 3
    if work.recompute == "full":
        linear, attention = linear * 4 / 3, attention * 4.5 / 3.5
    elif work.recompute == "selective":
        linear += (
            6.0 * model.num_hidden_layers * model.hidden_size * model.intermediate_size
        )
    return work.context * ((linear + attention) / pp + head)


def _tensor_seconds(work: Workload, cluster: ClusterSpec) -> float:
    """Sequence parallelism's all-gathers and reduce-scatters:

    4 a layer forward, 6 backward (2 gather inputs again).
    """
    tp = work.layout.tp
    collectives = 10 + (
        4 if work.recompute == "full" else 2 if work.recompute == "selective" else 0
    )
    moved = (tp - 1) / tp * work.local_tokens * work.model.hidden_size * work.bytes
    return work.layers_per_stage * collectives * moved / _bandwidth(cluster, tp)


def _context_seconds(work: Workload, cluster: ClusterSpec) -> float:
    """Keys and values that the rank's queries see and other ranks hold, and their
    gradients sent back.
    """
    layout = work.layout
    passes = 3 if work.recompute == "full" else 2
    if layout.cp <= 2:
        received = (layout.cp - 1) * cluster.key_value_share_of_two
    else:
        received = max(0.0, cluster.key_value_share - 1 / layout.cp)
    row_bytes = work.context * 2 * work.model.key_value_size / layout.tp * work.bytes
    moved = received * row_bytes
    return (
        work.layers_per_stage
        * passes
        * moved
        / _bandwidth(cluster, layout.tp * layout.cp)
    )


def _data_seconds(work: Workload, cluster: ClusterSpec) -> float:
    """Reduce-scatter of fp32 gradients and all-gather of weights over dp*cp, once an update."""
    copies = work.data_parallel * work.layout.cp
    moved = (
        (copies - 1)
        / copies
        * rank_parameters(work, work.layout.pp - 1)
        * (4 + work.bytes)
    )
    return moved / _bandwidth(cluster, work.layout.tp * copies)


def _bandwidth(cluster: ClusterSpec, span: int) -> float:
    """Bytes per second and GPU for a group whose ranks span `span` neighbouring ranks
    (Megatron: tp, then cp, dp).
    """
    return _GIGA * (
        cluster.node_gb_per_s
        if span <= cluster.ranks_per_node
        else cluster.network_gb_per_s
    )


def spans_nodes(layout: Layout, cluster: ClusterSpec) -> bool:
    """Whether tensor parallelism leaves the node, where its traffic would take most of the time."""
    return layout.tp > cluster.ranks_per_node
