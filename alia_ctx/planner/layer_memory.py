"""What one decoder layer keeps for its backward, and what its backward holds beside that.

A layer's backward is followed through its states: the down projection, SwiGLU, gate and up,
the attention. Each has what was formed and not yet used, less what was saved and is used
up. The largest is the peak. What TransformerEngine's layers keep is from their source
(2.12: `transformer_engine.pytorch.module.linear`, `.layernorm_linear` and `.base`).

Letters: t tokens of a row on a CP rank, s = t/tp where sequence parallelism cuts them, b
bytes of a number.
"""

from __future__ import annotations

from dataclasses import replace

from alia_ctx.planner.workload import Workload
from alia_ctx.spec.execution import Layers

_FP32 = 4
# Bytes of a number in FP8. With a scale a block, forms that run along 128 numbers have one
# in fp32 for as many.
_FP8_BYTES = {"off": 0.0, "current": 1.0, "blockwise": 1.0 + _FP32 / 128}
# What cuBLAS works in where TransformerEngine calls it on Hopper
# (`transformer_engine.pytorch.cpp_extensions.gemm`).
# What torch's own calls take, twice as much, is among the guess of overhead.
_TE_WORKSPACE = 32 << 20


def layer_activations(work: Workload) -> tuple[int, int]:
    """(bytes saved for backward by a layer in bf16 or fp32, bytes of the keys and values it
    attends to); a test counts them.
    """
    model, tp, b = work.model, work.layout.tp, work.bytes
    t = work.local_tokens
    s_hidden = hidden_bytes(work)
    query = t * model.query_size // tp * b
    collected = work.context * 2 * model.key_value_size // tp * b
    if work.recompute == "full":
        return s_hidden, collected
    statistics = t * model.num_attention_heads // tp * _FP32
    # Inputs of both norms and their outputs; rotated queries; the attention's output,
    # with cp > 1 that of each chunk and of both joined; its log-sum-exp.
    saved = 4 * s_hidden + (2 if work.layout.cp == 1 else 3) * query + statistics
    if model.qk_norm:
        # The product of Q, K and V, as the keys' norm keeps a view of it; the queries in
        # order, which are theirs; 1/rms of each head.
        product = t * (model.query_size + 2 * model.key_value_size) // tp * b
        heads = model.num_attention_heads + model.num_key_value_heads
        saved += product + query + t * heads // tp * _FP32
    if work.recompute == "selective":
        # TransformerEngine's norm is in the gate and up projection, and recomputed with it.
        return saved - (s_hidden if work.te_layers else 0), collected
    return saved + 3 * _ffn(work) * b, collected


def halved_bytes(work: Workload) -> int:
    """What a layer of FP8 products saves less: the norms' outputs and the MLP's product are
    kept for the gradients of weights in the one form of FP8 that these want. The projection
    behind the attention keeps what the attention keeps anyway, in bf16.
    """
    if work.recompute == "full" or work.fp8 == "off":
        return 0
    numbers = _hidden(work)
    if work.recompute == "none":
        numbers += _hidden(work) + _ffn(work)
    return round(numbers * (work.bytes - _FP8_BYTES[work.fp8]))


def cast_weight_bytes(work: Workload, layers: int, in_flight: int) -> int:
    """Weights in FP8, as they are and transposed (Hopper's products take one form only):
    each row in flight keeps its own from its forward to its backward, but for those that
    are computed again.
    """
    if not layers:
        return 0
    model, tp = work.model, work.layout.tp
    mlp = 3 * model.hidden_size * model.intermediate_size // tp
    attention = 2 * model.hidden_size * (model.query_size + model.key_value_size) // tp
    kept = {"none": attention + mlp, "selective": attention, "full": 0}[work.recompute]
    again = {"none": 0, "selective": mlp, "full": attention + mlp}[work.recompute]
    return 2 * (in_flight * layers * kept + again)


def te_bytes(work: Workload) -> int:
    """What TransformerEngine's layers hold once, whatever their number: an empty gradient
    for each shape of weight, as the true one is added to the fp32 one within the product
    (`get_dummy_wgrad`), and the workspace.
    """
    model, tp = work.model, work.layout.tp
    hidden, ffn = model.hidden_size, model.intermediate_size // tp
    query, keys = model.query_size // tp, model.key_value_size // tp
    shapes = {
        (query + 2 * keys, hidden),
        (hidden, query),
        (2 * ffn, hidden),
        (hidden, ffn),
    }
    return sum(rows * columns for rows, columns in shapes) * work.bytes + _TE_WORKSPACE


def rope_bytes(work: Workload) -> int:
    """Cos and sin of the rank's tokens in fp32, which all layers share."""
    return work.local_tokens * work.model.head_dim * _FP32


def gathered_bytes(work: Workload) -> int:
    """The buffer in which Megatron-Core's layers gather their input from tensor-parallel
    ranks: it is kept (`get_global_memory_buffer`). TransformerEngine's let theirs go.
    """
    if work.layout.tp == 1 or work.te_layers:
        return 0
    return work.local_tokens * work.model.hidden_size * work.bytes


def working_bytes(work: Workload, pipeline_rank: int) -> int:
    """What a rank's backward holds at its peak beside what all its layers saved, and the
    gradient of the hidden states.

    The last layer's is the peak, as all is saved then. Where it keeps bf16 among layers of
    FP8, the one before may need more, when the last layers' is gone.
    """
    of_last = _peak(replace(work, fp8="off", layers=_layers(work)))
    if not work.fp8_layers(pipeline_rank):
        return of_last
    last = pipeline_rank == work.layout.pp - 1
    gone = work.fp8_bf16_layers * sum(layer_activations(work)) if last else 0
    return max(of_last if gone else 0, _peak(work) - gone)


def _layers(work: Workload) -> Layers:
    return "te" if work.te_layers else "local"


def _peak(work: Workload) -> int:
    """Of one layer's backward: what it computes again, and the largest of its states."""
    recomputed = 0
    if work.recompute == "selective":
        recomputed = _mlp_saved(work) + hidden_bytes(work)  # and its output
        if work.te_layers:
            recomputed += _norm_saved(work)
    if work.recompute == "full":
        chunked = work.mlp_chunk_tokens is not None
        inside = replace(work, recompute="selective" if chunked else "none")
        if chunked:
            inside = replace(inside, layers="local")
        # All but the input, which is kept; and the layer's output, which stands until its
        # backward is through (upstream's `CheckpointFunction`).
        recomputed = layer_activations(inside)[0] - halved_bytes(inside)
    return recomputed + max(*_mlp_states(work), _attention_state(work))


def _mlp_states(work: Workload) -> tuple[int, ...]:
    """Beside all that is saved and recomputed: the down projection's gradients, with what is
    gathered for them; SwiGLU's, when the product is gone and those of gate and up are there
    beside its own; those of the projection to gate and up.
    """
    if work.recompute == "full" and work.mlp_chunk_tokens is not None:
        return (_chunk_bytes(work, min(work.mlp_chunk_tokens, work.local_tokens)),)
    model, tp, b = work.model, work.layout.tp, work.bytes
    fp8, ffn = work.fp8 != "off", _ffn(work) * b
    whole = work.local_tokens * model.hidden_size
    weight = model.hidden_size * model.intermediate_size // tp
    # Megatron-Core's own layers form a weight's gradient before it is added.
    of_weight = 0 if work.te_layers else weight * b
    # A gradient that products take in FP8 is in two forms: as it is, and transposed.
    forms = 2 * _FP8_BYTES[work.fp8]
    gathered = whole * b if tp > 1 else 0
    down = (round(forms * whole) if fp8 else gathered) + ffn + of_weight
    used = _product_saved(work) + (2 * weight if fp8 else 0)
    swiglu = 3 * ffn - used
    # Gate and up are used up, their gradients are there.
    up = whole * b + 2 * of_weight - used
    if fp8:
        up += round(forms * 2 * _ffn(work))
    if tp > 1:
        up += hidden_bytes(work)
        if work.te_layers:
            up += round(forms * whole) if fp8 else whole * b
    return down, swiglu, up


def _attention_state(work: Workload) -> int:
    """The attention's backward, when the MLP's part of a layer is gone: the gradients of its
    output and of the queries, which FlashAttention adds up in fp32 beside them, and those of
    the keys and values, in fp32 too where several heads share them.
    """
    model, tp, b = work.model, work.layout.tp, work.bytes
    query = work.local_tokens * model.query_size // tp
    keys = work.context * 2 * model.key_value_size // tp
    shared = model.num_attention_heads != model.num_key_value_heads
    held = query * (_FP32 + 2 * b) + keys * (b + (_FP32 if shared else 0))
    hidden = hidden_bytes(work)
    chunked = work.recompute == "full" and work.mlp_chunk_tokens is not None
    gone = hidden + _norm_saved(work) + (0 if chunked else _mlp_saved(work))
    if work.recompute == "full":
        gone -= hidden  # the gradient that came to the layer stands until it is through
    return held - gone


def _chunk_bytes(work: Workload, chunk: int) -> int:
    """The MLP's peak where it goes in chunks (`alia_ctx/mcore/chunked_mlp.py`): of all tokens
    the gradient of its input; of one chunk SwiGLU's state with its output and the gradient of
    the down projection, or that of the projection to gate and up with all weights'.
    """
    model, tp, b = work.model, work.layout.tp, work.bytes
    ffn = chunk * model.intermediate_size // tp * b
    hidden = chunk * model.hidden_size * b
    weight = model.hidden_size * model.intermediate_size // tp * b
    swiglu = 5 * ffn + weight
    up = 2 * ffn + hidden + 3 * weight
    return hidden_bytes(work) + hidden + max(swiglu, up)


def hidden_bytes(work: Workload) -> int:
    """Hidden states of a row on a rank."""
    return _hidden(work) * work.bytes


def _hidden(work: Workload) -> int:
    """Numbers of the hidden states on a rank."""
    return work.local_tokens // work.layout.tp * work.model.hidden_size


def _ffn(work: Workload) -> int:
    """Numbers of gate, of up, and of their product."""
    return work.local_tokens * work.model.intermediate_size // work.layout.tp


def _norm_saved(work: Workload) -> int:
    return round(_hidden(work) * (_FP8_BYTES[work.fp8] or work.bytes))


def _product_saved(work: Workload) -> int:
    return round(_ffn(work) * (_FP8_BYTES[work.fp8] or work.bytes))


def _mlp_saved(work: Workload) -> int:
    """Gate and up, and their product, which the down projection keeps."""
    return 2 * _ffn(work) * work.bytes + _product_saved(work)
