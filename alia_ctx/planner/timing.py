"""Time of an update, from FLOPs at two efficiencies and bytes over links.

Products with weights run at one share of the GPU's peak in the precision that is computed
in, and attention at another. What the engine waits for is added: tensor parallelism's
collectives, keys and values, copies of offloaded activations. Of the gradients' reduction
and the weights' gathering only what the last backward and the first forward do not hide
counts. What is done number by number with gradients, weights and the optimizer's state
goes at the speed of the GPU's memory: a row's gradients are added to the update's, and once
an update they are zeroed and scaled, and the optimizer steps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from alia_ctx.planner.kernels import attention_share
from alia_ctx.planner.layer_memory import layer_activations
from alia_ctx.planner.memory import rank_parameters
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout

_GIGA = 1e9
Direction = Literal["forward", "backward"]
# Sequence parallelism's all-gathers and reduce-scatters of a layer: 4 forward; backward 4,
# and 2 that gather inputs again. Recomputation repeats those of the forward.
#
# `engine.tp_overlap_chunks` is no part of this. A chunk that is sent goes beside products,
# which take longer for it, as both want the same processors. On two and four H200, in seven
# runs of the same step with and without chunks (docs/benchmarks/planner-rows.json), chunks
# took from 1.2% less to 2.4% more time: of what would be hidden if products took no longer,
# the share that is nearest to all of them is below none (-0.19).
_FORWARD, _BACKWARD = 4, 6
_COLLECTIVES = {"none": 0, "selective": 2, "full": _FORWARD}
# Bytes that a GPU's memory reads and writes for a parameter. In bf16 a row's gradient is read
# and added in fp32 (10; `main_grad.add_` of upstream's hook). Once an update the sum is
# zeroed (4) and scaled (8), all of it on each rank; and for what a rank owns the norm is formed
# twice (8), AdamW's eight passes are made (80: `alia_ctx/mcore/adam.py`), and the main weight
# is rounded to bf16 (6). One H200, three ALIA layers: 0.053 s an update by this; by what one
# and four rows took 0.083, in which for 23 to 29 ms nothing runs. Of five layers the
# optimizer is 5% of a step's profile, as here (docs/benchmarks/gpu.md).
_SUM, _ZEROED_AND_SCALED, _NORMS_AND_ADAMW, _ROUNDED = 8, 12, 88, 6
# Products in FP8, from the profiles of one step of TransformerEngine's layers on one H100
# (docs/benchmarks/gpu.md, beside other programs; 32,768 tokens, products 8,192 and more
# wide): in bf16 products take 448.3 of the 500.8 ms that are not attention's; in FP8 they
# take 238.5 or 290.7 ms, and what is cast 20.0 or 17.3.
_PRODUCTS_SHARE = 448.3 / 500.8
_FP8_PRODUCTS = {
    "current": (238.5 + 20.0) / 448.3,
    "blockwise": (290.7 + 17.3) / 448.3,
}


@dataclass(frozen=True)
class RowTime:
    """Seconds of a row in one direction on one pipeline rank."""

    matrices: float
    attention: float
    tensor_parallel: float
    context_parallel: float
    offload: float
    gradients: float

    @property
    def compute(self) -> float:
        return self.matrices + self.attention + self.gradients

    @property
    def total(self) -> float:
        return float(sum(getattr(self, part.name) for part in fields(self)))


@dataclass(frozen=True)
class Timing:
    """Seconds of an update on the slowest rank.

    `mfu` is useful FLOPs over the peak of all GPUs in that time; `data_parallel` is what
    nothing hides; `step` is what is done once, whatever the rows: gradients zeroed and
    scaled, their norm, the optimizer's step.
    """

    compute: float
    tensor_parallel: float
    context_parallel: float
    data_parallel: float
    pipeline_idle: float
    mfu: float
    offload: float = 0.0
    step: float = 0.0

    @property
    def total(self) -> float:
        return (
            self.compute
            + self.tensor_parallel
            + self.context_parallel
            + self.data_parallel
            + self.pipeline_idle
            + self.offload
            + self.step
        )


def flops_per_token(work: Workload) -> tuple[float, float]:
    """(matrix products with weights, attention) FLOPs per token of a row as it is computed,
    forward and backward.

    Attention is that of the plan's documents, and fill as one, where there is a plan, and
    of one document a row where there is none.
    """
    return work.model.linear_flops_per_token(), _attention_flops(
        work, work.pairs_per_row
    ) / work.context


def useful_flops(work: Workload) -> float:
    """FLOPs that the documents of an update need; fill, which is computed, needs none."""
    linear, attention = flops_per_token(work)
    packed = work.packed
    if packed is None:
        return work.tokens_per_update * (linear + attention)
    if packed.useful_pairs is not None:
        attention = _attention_flops(work, packed.useful_pairs) / work.context
    return work.tokens_per_update * (linear * packed.fill + attention)


def _attention_flops(work: Workload, pairs: float) -> float:
    return 12.0 * work.model.num_hidden_layers * work.model.query_size * pairs


def seconds_at_mfu(work: Workload, cluster: ClusterSpec, mfu: float) -> float:
    """Seconds of an update if useful FLOPs run at `mfu` of all GPUs' peak in its precision."""
    peak = work.world_size * cluster.peak_flops(work.precision)
    return useful_flops(work) / (peak * mfu)


def update_time(
    work: Workload,
    cluster: ClusterSpec,
    *,
    interleaved: int = 1,
    matrix_speed: float = 1.0,
) -> Timing:
    """Time of an update: 1F1B over the rows of the busiest data-parallel rank, then what is
    left of the gradients' reduction, and the step.

    Two things that this engine does not do, for comparisons with others: `interleaved`
    parts of the layers on each pipeline rank, and products with weights at
    `matrix_speed` times the bf16 peak (2 in float8).
    """
    rows, last = max(1, work.rows_per_rank[1]), work.layout.pp - 1
    forward, backward = (
        row_time(work, cluster, last, way, matrix_speed=matrix_speed)
        for way in ("forward", "backward")
    )
    row = forward.total + backward.total
    idle = (work.layout.pp - 1) * row / interleaved
    data = exposed_seconds(work, cluster, forward.total, backward.total)
    compute = forward.compute + backward.compute
    tensor = forward.tensor_parallel + backward.tensor_parallel
    context = forward.context_parallel + backward.context_parallel
    step = sum(once_seconds(work, cluster, last))
    total = rows * row + idle + data + step
    return Timing(
        rows * compute,
        rows * tensor,
        rows * context,
        data,
        idle,
        seconds_at_mfu(work, cluster, 1.0) / total,
        rows * (forward.offload + backward.offload),
        step,
    )


def row_time(
    work: Workload,
    cluster: ClusterSpec,
    pipeline_rank: int,
    direction: Direction,
    pairs: float | None = None,
    matrix_speed: float = 1.0,
) -> RowTime:
    """A row of `pairs` query-key pairs (default: the workload's) on one pipeline rank."""
    ranks = work.layout.tp * work.layout.cp
    peak = cluster.peak_flops(work.precision) * ranks
    pairs = work.pairs_per_row if pairs is None else pairs
    matrices, attention = _row_flops(work, pipeline_rank, direction, pairs)
    products = matrices / (peak * cluster.efficiency * matrix_speed)
    products *= 1.0 - _share_saved_by_fp8(work, pipeline_rank, direction, matrices)
    scores = attention / (peak * attention_share(cluster, work.attention))
    added = 0.0
    if direction == "backward":
        moved = rank_parameters(work, pipeline_rank) * (work.bytes + _SUM)
        added = moved / _memory_speed(cluster)
    return RowTime(
        products,
        scores,
        _tensor_seconds(work, cluster, direction),
        _context_seconds(work, cluster, direction),
        _offload_seconds(work, cluster, products + scores + added),
        added,
    )


def once_seconds(
    work: Workload, cluster: ClusterSpec, pipeline_rank: int
) -> tuple[float, float]:
    """Seconds of an update on a pipeline rank, whatever its rows: (gradients are zeroed and
    scaled, the optimizer steps on what the rank owns).
    """
    parameters = rank_parameters(work, pipeline_rank)
    owned = parameters / (work.data_parallel * work.layout.cp)
    rounded = _ROUNDED if work.precision == "bf16" else 0
    speed = _memory_speed(cluster)
    return (
        parameters * _ZEROED_AND_SCALED / speed,
        owned * (_NORMS_AND_ADAMW + rounded) / speed,
    )


def _memory_speed(cluster: ClusterSpec) -> float:
    return _GIGA * cluster.memory_gb_per_s


def _share_saved_by_fp8(
    work: Workload, pipeline_rank: int, direction: Direction, matrices: float
) -> float:
    """Of the time that the row's `matrices` FLOPs take in bf16. Only products of layers in
    FP8 are faster; the head's, norms and all that is done number by number are not.
    """
    layers = work.fp8_layers(pipeline_rank)
    if not layers or not matrices:
        return 0.0
    head = work.context * _head_flops(work, pipeline_rank, direction)
    saved = _PRODUCTS_SHARE * (1.0 - _FP8_PRODUCTS[work.fp8])
    return saved * layers / work.layers_per_stage * (1.0 - head / matrices)


def _row_flops(
    work: Workload, pipeline_rank: int, direction: Direction, pairs: float
) -> tuple[float, float]:
    """(products with weights, attention) FLOPs of a row on a pipeline rank, recomputation
    included.

    FlashAttention's backward forms the scores again: 2.5 forwards instead of 2. The loss
    forms its gradients in the forward (`alia_ctx/nn/linear_cross_entropy.py`).
    """
    model, pp = work.model, work.layout.pp
    of_layers = model.linear_flops_per_token() - _head_flops(work, pp - 1, "forward")
    linear = of_layers / 3 / pp  # of a forward
    scores = _attention_flops(work, pairs) / 3 / pp
    if direction == "forward":
        own = _head_flops(work, pipeline_rank, direction)
        return work.context * (linear + own), scores
    again = 2.0 * linear
    if work.recompute == "full":
        return work.context * (again + linear), 3.5 * scores
    if work.recompute == "selective":
        # The MLP's three products, run once more.
        again += 6.0 * work.layers_of_rank * model.hidden_size * model.intermediate_size
    return work.context * again, 2.5 * scores


def _head_flops(work: Workload, pipeline_rank: int, direction: Direction) -> float:
    """Of a token, where the head is: all of them are the forward's, as is the loss."""
    if pipeline_rank < work.layout.pp - 1 or direction == "backward":
        return 0.0
    return 6.0 * work.model.embedding_parameters()


def _tensor_seconds(
    work: Workload, cluster: ClusterSpec, direction: Direction
) -> float:
    """The collectives in a row's layers, which nothing is taken to hide."""
    tp, again = work.layout.tp, _COLLECTIVES[work.recompute]
    moved = (tp - 1) / tp * work.local_tokens * work.model.hidden_size * work.bytes
    count = _FORWARD if direction == "forward" else _BACKWARD + again
    return count * work.layers_of_rank * moved / _bandwidth(cluster, tp)


def _context_seconds(
    work: Workload, cluster: ClusterSpec, direction: Direction
) -> float:
    """Keys and values that the rank's queries see and other ranks hold, and their
    gradients sent back.
    """
    layout = work.layout
    passes = 2 if work.recompute == "full" and direction == "backward" else 1
    if layout.cp <= 2:
        received = (layout.cp - 1) * cluster.key_value_share_of_two
    else:
        received = max(0.0, cluster.key_value_share - 1 / layout.cp)
    row_bytes = work.context * 2 * work.model.key_value_size / layout.tp * work.bytes
    moved = received * row_bytes
    return (
        work.layers_of_rank
        * passes
        * moved
        / _bandwidth(cluster, layout.tp * layout.cp)
    )


def _offload_seconds(work: Workload, cluster: ClusterSpec, compute: float) -> float:
    """Copies of what autograd saves. Those of inputs of recomputed layers go beside the
    `compute` seconds of the row, each beside one layer (`alia_ctx/nn/input_offload.py`);
    others in the order of the stream, where nothing hides them
    (`alia_ctx/nn/activation_offload.py`).
    """
    if not work.offload:
        return 0.0
    saved, collected = layer_activations(work)
    speed, layers = _GIGA * cluster.host_gb_per_s, work.layers_of_rank
    if work.recompute == "full":
        return max(0.0, layers * saved / speed - compute)
    return layers * (saved + collected) / speed


def data_parallel_seconds(work: Workload, cluster: ClusterSpec) -> tuple[float, float]:
    """(reduce-scatter of the fp32 gradients, all-gather of the weights) over dp*cp, once an
    update, on the last pipeline rank.
    """
    copies = work.data_parallel * work.layout.cp
    parameters = rank_parameters(work, work.layout.pp - 1)
    moved = (copies - 1) / copies * parameters
    bandwidth = _bandwidth(cluster, work.layout.tp * copies)
    return moved * 4 / bandwidth, moved * work.bytes / bandwidth


def exposed_seconds(
    work: Workload, cluster: ClusterSpec, forward: float, backward: float
) -> float:
    """What the last row's backward and the first row's forward leave of the reduction and
    the gathering.
    """
    reduction, gathering = data_parallel_seconds(work, cluster)
    if not work.overlap:
        return reduction + gathering
    return max(0.0, reduction - backward) + max(0.0, gathering - forward)


def _bandwidth(cluster: ClusterSpec, span: int) -> float:
    """Bytes per second and GPU for a group whose ranks span `span` neighbouring ranks
    (Megatron: tp, then cp, dp).
    """
    return _GIGA * (
        cluster.node_gb_per_s
        if span <= cluster.ranks_per_node
        else cluster.network_gb_per_s
    )


def boundary_seconds(work: Workload, cluster: ClusterSpec) -> float:
    """A row's hidden states, or their gradients, from one pipeline rank to the next."""
    layout = work.layout
    moved = work.local_tokens // layout.tp * work.model.hidden_size * work.bytes
    return moved / _bandwidth(cluster, work.world_size)


def spans_nodes(layout: Layout, cluster: ClusterSpec) -> bool:
    """Whether tensor parallelism leaves the node, where its traffic would take most of the time."""
    return layout.tp > cluster.ranks_per_node
