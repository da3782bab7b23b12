"""Memory of a GPU, item by item, for each pipeline rank.

The items follow what the engine keeps: Megatron-Core's DistributedDataParallel
(contiguous fp32 gradients) and distributed optimizer (arXiv 1910.02054, stage 1, over
dp*cp), sequence-parallel activations (arXiv 2205.05198), our attention, which keeps the
keys and values that it collected, and our loss, which forms the head's gradient with
the loss. Sizes are bytes until `RankMemory` turns them to GiB.

Letters in formulas: t tokens of a row on a CP rank, s = t/tp where sequence parallelism
cuts them, b bytes of a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from alia_ctx.planner.layer_memory import (
    cast_weight_bytes,
    gathered_bytes,
    halved_bytes,
    hidden_bytes,
    layer_activations,
    rope_bytes,
    te_bytes,
    working_bytes,
)
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.model import ModelSpec

GIB = float(1 << 30)
_FP32 = 4


# Layers whose saved activations are on the GPU where others' wait on the host: the one
# that is computed, and the one on its way.
_LAYERS_HERE = 2


@dataclass(frozen=True)
class RankMemory:
    """GiB by item on the GPUs of one pipeline rank.

    items: at the peak of forward and backward.
    step_items: while the optimizer steps, when no activations are held.
    offloaded: activations of a rank that wait in host memory.
    """

    pipeline_rank: int
    parameters: int
    in_flight: int
    items: dict[str, float]
    step_items: dict[str, float]
    offloaded: float = 0.0

    @property
    def total(self) -> float:
        """The larger of the two peaks."""
        return max(sum(self.items.values()), sum(self.step_items.values()))

    @property
    def without_guesses(self) -> float:
        """The same of what is counted alone: tensors, without items called a guess."""
        return max(
            sum(gib for name, gib in items.items() if "(guess)" not in name)
            for items in (self.items, self.step_items)
        )

    @property
    def largest(self) -> str:
        """Name of the largest item of the larger peak."""
        items = self.peak_items
        return max(items, key=lambda name: items[name])

    @property
    def peak_items(self) -> dict[str, float]:
        """Items of the larger of the two peaks."""
        stepping = sum(self.step_items.values()) > sum(self.items.values())
        return self.step_items if stepping else self.items


def rank_memory(work: Workload, pipeline_rank: int, overhead_gib: float) -> RankMemory:
    """Memory of one pipeline rank;

    the most loaded CP and DP rank is taken (CP rank 0 collects the whole row).
    """
    parameters = rank_parameters(work, pipeline_rank)
    in_flight = _in_flight(work, pipeline_rank)
    saved, collected = layer_activations(work)
    layers = in_flight * work.layers_per_stage
    once = 1 if work.recompute == "full" else layers
    sent = 0
    if pipeline_rank < work.layout.pp - 1:
        # Upstream keeps what a row gave to the next rank until the row's backward.
        sent = in_flight * hidden_bytes(work)
    if work.offload and work.recompute == "full":
        # What is sent on is among the inputs here.
        layers, sent = _inputs_here(work, pipeline_rank, in_flight), 0
    elif work.offload:
        layers = once = min(layers, _LAYERS_HERE)
    kept = {
        "weights": parameters * work.bytes,
        "gradients": parameters * _FP32,
        "optimizer": optimizer_bytes(work, parameters),
        "gathered inputs": gathered_bytes(work),
        "TransformerEngine's buffers": te_bytes(work) if work.te_layers else 0,
    }
    fp8_layers = work.fp8_layers(pipeline_rank)
    sizes = {
        **kept,
        "activations": layers * saved
        - min(layers, in_flight * fp8_layers) * halved_bytes(work),
        "FP8 copies of weights": cast_weight_bytes(work, fp8_layers, in_flight),
        "collected keys and values": once * collected,
        "hidden states sent on": sent,
        "RoPE's cos and sin": rope_bytes(work),
        **_passing_bytes(work, pipeline_rank),
    }
    stepping = {**kept, "AdamW temporaries": _temporary_bytes(work, parameters)}
    guess = {"overhead (guess)": overhead_gib}
    if work.layers == "auto" and not work.te_layers:
        guess["TransformerEngine, if installed (guess)"] = te_bytes(work) / GIB
    return RankMemory(
        pipeline_rank,
        parameters,
        in_flight,
        {**_in_gib(sizes), **guess},
        {**_in_gib(stepping), **guess},
        offloaded_bytes(work, pipeline_rank) / GIB,
    )


def offloaded_bytes(work: Workload, pipeline_rank: int) -> int:
    """Activations of a rank that wait in host memory: inputs of recomputed layers, which have
    memory for rows of the context (`alia_ctx/mcore/offloading.py`), or all that the longest
    rows save, with a whole row's keys and values, of which CP ranks see all or a part.
    """
    if not work.offload:
        return 0
    if work.recompute == "full":
        return _inputs_away(work, pipeline_rank) * layer_activations(work)[0]
    layers = _in_flight(work, pipeline_rank) * work.layers_per_stage
    return layers * sum(layer_activations(work.in_longest_rows))


def _in_flight(work: Workload, pipeline_rank: int) -> int:
    """Rows between their forward and their backward, 1F1B."""
    return min(max(1, work.rows_per_rank[1]), work.layout.pp - pipeline_rank)


def _inputs_away(work: Workload, pipeline_rank: int) -> int:
    """Inputs of recomputed layers that are on the host at a time, as
    `alia_ctx/mcore/offloading.py` locks memory for them at the start: for as many rows as the
    rank could have in flight, and not for an update's alone. The last one of a row that is
    alone stays, and that of the first layer behind another pipeline rank.
    """
    own = work.layers_per_stage - (pipeline_rank > 0)
    rows = work.layout.pp - pipeline_rank
    return own * rows if rows > 1 else max(0, own - 1)


def _inputs_here(work: Workload, pipeline_rank: int, in_flight: int) -> int:
    """Inputs of recomputed layers that are on the GPU at a time: two on their way, and what
    each row in flight got from the pipeline rank before and gave to the one after, which
    upstream keeps until the row's backward.
    """
    first, last = pipeline_rank == 0, pipeline_rank == work.layout.pp - 1
    own = work.layers_per_stage - (not first)
    passed = in_flight * ((not first) + (not last))
    return min(own * in_flight, _LAYERS_HERE) + passed


def _in_gib(sizes: dict[str, int]) -> dict[str, float]:
    return {name: size / GIB for name, size in sizes.items() if size}


def rank_parameters(work: Workload, pipeline_rank: int) -> int:
    """Parameters on one GPU of a pipeline rank:

    matrices cut by tp, norms whole; a tied table is on both ends.
    """
    model, tp, pp = work.model, work.layout.tp, work.layout.pp
    per_layer = model.layer_parameters() - _norms(model)
    count = work.layers_per_stage * (per_layer // tp + _norms(model))
    table = -(-model.vocab_size // tp) * model.hidden_size
    is_first, is_last = pipeline_rank == 0, pipeline_rank == pp - 1
    count += table * is_first
    if is_last:
        count += model.hidden_size + (
            0 if model.tie_word_embeddings and is_first else table
        )
    return count


def _norms(model: ModelSpec) -> int:
    return 2 * model.hidden_size + (2 * model.head_dim if model.qk_norm else 0)


def optimizer_bytes(work: Workload, parameters: int) -> int:
    """Two moments, and an fp32 copy of bf16 weights, sharded over dp*cp."""
    per_parameter = 2 * _FP32 + (_FP32 if work.precision == "bf16" else 0)
    return parameters * per_parameter // (work.data_parallel * work.layout.cp)


def _temporary_bytes(work: Workload, parameters: int) -> int:
    """AdamW's roots of the second moments, all at once (`alia_ctx/mcore/adam.py`)."""
    return parameters * _FP32 // (work.data_parallel * work.layout.cp)


def saved_bytes(work: Workload, parameters: int) -> int:
    """Bytes that a rank of `parameters` parameters copies to the host, and writes, for a
    checkpoint: its range of the weights, and of main weights and moments.
    """
    share = work.data_parallel * work.layout.cp
    weights = parameters * work.bytes if work.precision == "bf16" else 0
    return (weights + parameters * 3 * _FP32) // share


def _passing_bytes(work: Workload, pipeline_rank: int) -> dict[str, int]:
    """The larger of two peaks while all activations are saved: the loss's, and that of the
    backward of the layer before it, when what the loss held is gone but for the gradient
    of the hidden states.
    """
    layer = {
        "working memory": working_bytes(work, pipeline_rank),
        "gradient of hidden states": hidden_bytes(work),
    }
    head = _head_bytes(work, pipeline_rank)
    return max(layer, head, key=lambda items: sum(items.values()))


def _head_bytes(work: Workload, pipeline_rank: int) -> dict[str, int]:
    """The loss on the last pipeline rank: one chunk of logits, and the gradients it forms at once.

    A chunk's logits stand in fp32 and in the weights' type. The head's gradient is
    summed in fp32 and, for bf16 weights, rounded once beside it; hidden states, normed
    and not, and their gradient.
    """
    if pipeline_rank != work.layout.pp - 1:
        return {}
    model, tp, b = work.model, work.layout.tp, work.bytes
    words = -(-model.vocab_size // tp)
    chunk = min(work.loss_chunk_tokens, work.local_tokens)
    return {
        "head gradient": words
        * model.hidden_size
        * (_FP32 + (b if work.precision == "bf16" else 0)),
        "logits of a chunk": chunk
        * words
        * (_FP32 + (b if work.precision == "bf16" else 0)),
        "hidden states of the head": 3
        * work.local_tokens
        // tp
        * model.hidden_size
        * b,
    }
