"""torchtitan's Llama 3 as a peer of `gpu_peers.py`: its own model, parallelisation, compilation
and loss, driven without its trainer, data and configuration files.

Written for torchtitan 0.3.0. What its trainer does between a batch and the optimizer is
done here by the same functions: the model is built on `meta` in the sizes of the task,
`parallelize_llama` compiles each layer (`torch.compile`, fullgraph, as its `compile.enable`
does) and puts FSDP2 over embedding, layers and head on any number of ranks, one included;
weights are drawn; a step makes the attention's mask of the row's positions, runs forward, its
`CrossEntropyLoss` (compiled) over the targets' number, and backward. Activation
checkpointing is off. CUDA graphs, which its trainer would record, are off: its graphs keep
gradients allocated between steps, and steps of this size do not wait for launches.

Precision on a GPU: products in bf16 and gradients reduced in fp32, its mixed precision.
`weights="float32"`, its default, keeps weights in fp32 and casts them to bf16 as FSDP2
gathers them, in forward and again in backward; gradients stay in fp32, in the sharded
parameters' `grad`. With `weights="bfloat16"` (its `training.dtype`) weights and gradients
lie in bf16, the latter reduced in fp32 first: what the peer `liger` has. On a host all is
fp32, and nothing is compiled.

RoPE is its own, theta 500,000 with Llama's scaling, rotated in complex numbers.

It is written for a newer torch than 2.11, with which three things are made up for; none
changes what is computed:

- `torch.distributed.fsdp.DataParallelMeshDims`, which it imports and uses for other values of
  `spmd_backend` than `partial_dtensor`, gets an empty stand-in. Ours is that value with
  any torch: without tensor and context parallelism all of them are FSDP2 alone.
- `create_block_mask` has no argument `separate_full_blocks`: it always does separate them,
  which is what it is asked for.
- `ChunkedLossWrapper`, its default, runs the head's backward within the forward, and norm and
  head are one unit of FSDP2: torch 2.11 then frees the norm's weight before the norm's
  backward reads it, and the process dies. Before torch 2.13, with which it was tried,
  the loss is that of its `llama3_debugmodel_ce_loss`, all logits at once.

Its `varlen` attention is no peer here: it calls torch's with arguments that 2.11 lacks.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from alia_ctx.spec.model import ModelSpec
from benchmarks.peers import Step, Task, device, positions_of

IGNORED = -100  # torchtitan's IGNORE_INDEX


def make(
    task: Task, attention: str, weights: str = "float32", compiled: bool | None = None
) -> Step:
    """The peer with `attention` "flex" (its default for Llama 3), "flex_flash" (the same
    mask, FlashAttention 4's kernel) or "sdpa" (torch's, cuDNN's kernel first; it knows no
    documents). `weights`: "float32" or "bfloat16".
    """
    if device().type == "cpu":
        weights = "float32"
    if compiled is None:
        compiled = device().type == "cuda"
    model, loss_of, parameters = build(task, attention, weights, compiled)
    tokens, labels = task.tokens, _labels(task)
    positions = positions_of(task.row)
    targets, ranks = int((labels != IGNORED).sum()), dist.get_world_size()
    valid = torch.tensor(targets * ranks, device=device())

    def run() -> float:
        model.zero_grad(set_to_none=True)
        extra = {"positions": positions}
        if attention != "sdpa":
            extra["attention_masks"] = model.get_attention_masks(positions=positions)
        loss, _ = loss_of(model(tokens, **extra), labels, valid)
        loss.backward()
        return float(loss.detach()) * ranks  # it is this rank's sum over all targets

    version = importlib.metadata.version("torchtitan")
    words = f"torchtitan {version}, {attention}, {weights} weights"
    return Step(run, parameters, lambda: words)


def build(
    task: Task, attention: str, weights: str, compiled: bool
) -> tuple[Any, Any, int]:
    """The parallelised model with weights drawn, its loss, and its number of parameters.

    Needs the default process group.
    """
    import_for_any_torch()
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
    from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
    from torchtitan.distributed import ParallelDims, parallel_dims
    from torchtitan.distributed.utils import set_spmd_backend
    from torchtitan.models.llama3 import parallelize_llama

    # It takes CUDA for the type of a machine without a GPU.
    parallel_dims.device_type = device().type
    parallelism = ParallelismConfig(spmd_backend="partial_dtensor")
    set_spmd_backend(parallelism.spmd_backend)
    compilation = CompileConfig(enable=compiled)
    low = "bfloat16" if device().type == "cuda" else "float32"
    training = TrainingConfig(
        seq_len=task.context,
        dtype=weights,  # type: ignore[arg-type]
        mixed_precision_param=low,  # type: ignore[arg-type]
    )
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, weights))
    try:
        with torch.device("meta"):
            model = model_config(task.model, task.context, attention).build()
    finally:
        torch.set_default_dtype(dtype)
    parameters = sum(p.numel() for p in model.parameters())
    model = parallelize_llama(
        model,
        parallel_dims=ParallelDims.from_config(parallelism, dist.get_world_size()),
        training=training,
        parallelism=parallelism,
        compile_config=compilation,
        ac_config=None,
        dump_folder="",
    )
    if device().type == "cpu":
        for module in model.modules():  # Gloo has no reduction that scales
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    model.to_empty(device=device())
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    model.train()
    whole = CrossEntropyLoss.Config(global_vocab_size=task.model.vocab_size)
    if not loss_may_be_chunked():
        return model, whole.build(compile_config=compilation), parameters
    chunked = ChunkedLossWrapper.Config(loss_fn=whole)
    loss_of = chunked.build(compile_config=compilation)
    loss_of.set_lm_head(model.lm_head)
    model._skip_lm_head = True
    return model, loss_of, parameters


def import_for_any_torch() -> None:
    """Import torchtitan, with what torch 2.11 does not have made up for."""
    import torch.distributed.fsdp as fsdp
    from torch.nn.attention.flex_attention import create_block_mask

    if not hasattr(fsdp, "DataParallelMeshDims"):
        fsdp.DataParallelMeshDims = type("DataParallelMeshDims", (), {})
    from torchtitan.models.common import decoder

    asked = "separate_full_blocks"  # which torch 2.11 always does
    if asked not in inspect.signature(create_block_mask).parameters:
        make_mask = decoder.create_attention_mask

        def make_separated(*arguments: Any, **options: Any) -> Any:
            assert options.pop(asked, True), f"this torch always does {asked}"
            return make_mask(*arguments, **options)

        decoder.create_attention_mask = make_separated


def loss_may_be_chunked() -> bool:
    """Whether FSDP2 bears that the head's backward runs before the norm's."""
    return bool(torch.__version__ >= (2, 13))


def model_config(spec: ModelSpec, context: int, attention: str) -> Any:
    """`Llama3Model.Config` of these sizes, its layers as its own flavours have them."""
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.llama3 import Llama3Model, _build_llama3_layers

    width, words = spec.hidden_size, spec.vocab_size
    if spec.head_dim * spec.num_attention_heads != width:
        raise ValueError("torchtitan's Llama 3 has heads of hidden size / heads")
    # As the other peers draw them, so that losses of random weights are alike.
    drawn = {"weight": functools.partial(torch.nn.init.normal_, std=0.02)}
    norm = RMSNorm.Config(
        normalized_shape=width, param_init={"weight": torch.nn.init.ones_}
    )
    layers = _build_llama3_layers(
        n_layers=spec.num_hidden_layers,
        dim=width,
        n_heads=spec.num_attention_heads,
        n_kv_heads=spec.num_key_value_heads,
        hidden_dim=spec.intermediate_size,
        rope=ComplexRoPE.Config(
            dim=spec.head_dim, max_seq_len=context, theta=500_000, scaling="llama"
        ),
        attn_backend="flex" if attention == "sdpa" else attention,
    )
    if attention == "sdpa":
        # Its choice by name is of kernels with a mask; the model takes this one as well.
        for layer in layers:
            layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return Llama3Model.Config(
        dim=width,
        vocab_size=words,
        enable_weight_tying=spec.tie_word_embeddings,
        tok_embeddings=Embedding.Config(
            num_embeddings=words, embedding_dim=width, param_init=drawn
        ),
        norm=norm,
        lm_head=Linear.Config(in_features=width, out_features=words, param_init=drawn),
        layers=layers,
    )


def _labels(task: Task) -> torch.Tensor:
    """[1, context]: each token's next one; the last of a document has none."""
    labels = task.tokens.roll(-1, 1)
    labels[0, torch.as_tensor(task.row.doc_offsets[1:], device=device()) - 1] = IGNORED
    return labels
