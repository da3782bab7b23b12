"""The Megatron-Core model: the one place that chooses upstream's model class and layer modules.

Upstream 0.19 deprecates `GPTModel` in favour of `HybridModel`. We stay with `GPTModel`,
whose checkpoint names are those that every Megatron tool reads, and keep the choice in
this file.

Position embedding is "none": our core attention rotates q and k from per-token
positions (mcore/attention.py). The linear layers are upstream's own, or those that it
derives from TransformerEngine's, which have the norm before them in them; beside the
former norms are ours, because upstream's torch norm rejects sequence parallelism. The
MLP, the embedding, the residual stream and the pipeline are upstream's.

Both kinds name a weight alike in a checkpoint: upstream's plain layer saves its norms
under the names of the others (`sharded_state_dict_keys_map` of its layer spec).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import TENorm
from megatron.core.models.gpt import GPTModel, gpt_layer_specs
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from alia_ctx.errors import LayoutError
from alia_ctx.mcore.attention import PackedAttention
from alia_ctx.mcore.chunked_linear import take_linears_in_chunks
from alia_ctx.mcore.chunked_mlp import ChunkedMLP
from alia_ctx.mcore.output_layer import LossOutputLayer
from alia_ctx.mcore.quiet import without_attention_variables
from alia_ctx.nn.dtypes import DTYPES
from alia_ctx.spec.execution import Fp8, Layers, Precision, Recompute
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec

# Draws the weights of (module, model, config, seed, groups) in place; see `initialize`.
Initializer = Callable[
    [torch.nn.Module, ModelSpec, TransformerConfig, int, ProcessGroupCollection], None
]


@dataclass(frozen=True)
class ModelOptions:
    """How the model is computed: nothing here changes what it computes beyond rounding."""

    precision: Precision
    kernel: str
    recompute: Recompute
    deterministic: bool
    on_gpu: bool
    loss_chunk_tokens: int | None = None
    layers: Layers = "local"
    fp8: Fp8 = "off"
    fp8_bf16_layers: int = 0
    mlp_chunk_tokens: int | None = None
    tp_overlap_chunks: int = 1


class RMSNorm(torch.nn.Module):
    """Root mean square norm (arXiv 1910.07467) whose weight gradient is summed over
    sequence-parallel ranks.

    Computed in fp32. On a CPU it is rounded before the weight is applied, as in Hugging
    Face's Llama; torch's CUDA kernel is fused and rounds once, after.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float = 1e-5,
        **ignored: Any,
    ) -> None:
        super().__init__()
        self.eps = (
            config.layernorm_epsilon if config.layernorm_epsilon is not None else eps
        )
        self.weight = torch.nn.Parameter(
            torch.ones(
                hidden_size,
                dtype=config.params_dtype,
                device=torch.cuda.current_device(),
            )
        )
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def transformer_config(
    model: ModelSpec, layout: Layout, options: ModelOptions
) -> TransformerConfig:
    """Upstream's configuration of `model` on `layout`."""
    dtype = DTYPES[options.precision]
    full = options.recompute == "full"
    return TransformerConfig(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        layernorm_epsilon=model.rms_norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=model.attention_bias,
        qk_layernorm=model.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.initializer_range,
        perform_initialization=False,
        use_cpu_initialization=not options.on_gpu,
        bf16=options.precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        autocast_dtype=dtype,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        context_parallel_size=layout.cp,
        sequence_parallel=layout.tp > 1,
        calculate_per_token_loss=True,
        deterministic_mode=options.deterministic,
        recompute_granularity=None
        if options.recompute == "none"
        else options.recompute,
        recompute_method="uniform" if full else None,
        recompute_num_layers=1 if full else None,
        recompute_modules=["mlp"] if options.recompute == "selective" else None,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=options.on_gpu,
        variable_seq_lengths=False,
        # With it TransformerEngine would keep an FP8 copy of each weight, 2 bytes a
        # parameter, and the gradient of an update's first row would replace what
        # `main_grad` holds (`is_first_microbatch` in
        # transformer_engine.pytorch.module.linear): both wrong for who does not tell it
        # where an update begins. A cast for each row costs little where rows are long.
        disable_parameter_transpose_cache=True,
        **_fp8_settings(options),
    )


def _fp8_settings(options: ModelOptions) -> dict[str, Any]:
    """Upstream's words for FP8 products; weights, gradients, norms, embedding, head and
    attention stay as they are.

    E4M3 forward and E5M2 for gradients where a tensor has one scale, which has to reach
    over all of its gradients; E4M3 throughout where each block has its own (DeepSeek-V3,
    arXiv 2412.19437).
    """
    if options.fp8 == "off":
        return {}
    current = options.fp8 == "current"
    return {
        "fp8": "hybrid" if current else "e4m3",
        "fp8_recipe": "tensorwise" if current else "blockwise",
        "fp8_param": False,
        "first_last_layers_bf16": options.fp8_bf16_layers > 0,
        "num_layers_at_start_in_bf16": options.fp8_bf16_layers,
        "num_layers_at_end_in_bf16": options.fp8_bf16_layers,
    }


def layer_specification(
    config: TransformerConfig, kernel: str, layers: Layers = "local"
) -> ModuleSpec:
    """Upstream's decoder layer, plain with our norms or of TransformerEngine's modules, with
    our core attention.
    """
    if layers == "te":
        layer = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(
            qk_layernorm=config.qk_layernorm
        )
        parts = layer.submodules
    else:
        layer = gpt_layer_specs.get_gpt_layer_local_spec(
            qk_layernorm=config.qk_layernorm, normalization=config.normalization
        )
        parts = layer.submodules
        parts.input_layernorm = RMSNorm
        parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = functools.partial(PackedAttention, kernel=kernel)
    if config.qk_layernorm and layers == "local":
        attention.q_layernorm = RMSNorm
        attention.k_layernorm = RMSNorm
    return layer


def _take_mlp_in_chunks(layer: ModuleSpec, layers: Layers) -> None:
    if layers == "te":
        raise LayoutError(
            "engine.mlp_chunk_tokens: the MLP of TransformerEngine's layers is not cut into "
            "chunks; set engine.layers=local, or leave it out"
        )
    # What builds upstream's MLP, with its parts bound to it.
    parts = layer.submodules.mlp.keywords
    layer.submodules.mlp = functools.partial(ChunkedMLP.as_mlp_submodule, **parts)


def padded_vocabulary(model: ModelSpec, tp: int) -> int:
    """Rows of the vocabulary tables in memory:

    the next multiple of `tp`. The checkpoint keeps the real ones.
    """
    return math.ceil(model.vocab_size / tp) * tp


def build_model(
    model: ModelSpec,
    config: TransformerConfig,
    context: int,
    options: ModelOptions,
    groups: ProcessGroupCollection,
) -> GPTModel:
    """This rank's part of the model, with uninitialised weights, on the current device.

    On the last pipeline rank its `output_layer` is a `LossOutputLayer`.
    """
    pp_rank, pp_size = groups.pp.rank(), groups.pp.size()
    layer = layer_specification(config, options.kernel, options.layers)
    if options.tp_overlap_chunks > 1 and config.sequence_parallel:
        take_linears_in_chunks(layer, options.layers, options.tp_overlap_chunks)
    chunk = options.mlp_chunk_tokens if options.recompute == "full" else None
    if chunk is not None:
        _take_mlp_in_chunks(layer, options.layers)
    block = TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, pp_rank=pp_rank),
        layer_norm=RMSNorm if options.layers == "local" else TENorm,
    )
    with without_attention_variables():
        module = GPTModel(
            config=config,
            transformer_layer_spec=block,
            vocab_size=padded_vocabulary(model, groups.tp.size()),
            max_sequence_length=context,
            pre_process=pp_rank == 0,
            post_process=pp_rank == pp_size - 1,
            share_embeddings_and_output_weights=model.tie_word_embeddings,
            position_embedding_type="none",
            pg_collection=groups,
        )
    for part in module.modules():
        if isinstance(part, ChunkedMLP) and chunk is not None:
            part.chunk_tokens = -(-chunk // groups.tp.size())
    if module.post_process:
        module.output_layer = LossOutputLayer(
            module.output_layer, model.vocab_size, options.loss_chunk_tokens
        )
    return module.to(torch.cuda.current_device())


def add_gradients_in_products(module: torch.nn.Module) -> None:
    """Let TransformerEngine's layers of `module` add a weight's gradient to the fp32 one
    (`main_grad`) in the product that forms it, in place of a bf16 gradient that is added
    after. DistributedDataParallel has to be around them.

    Not where hooks on saved tensors keep activations elsewhere: they hand a weight back
    without its attributes, in which it is noted that its gradient was added
    (transformer_engine.pytorch.module.layernorm_linear). Upstream's setting for it
    (`gradient_accumulation_fusion`) would ask its own head for a kernel of Apex's too
    (megatron/core/tensor_parallel/layers.py).
    """
    for part in module.modules():
        if hasattr(part, "fuse_wgrad_accumulation"):
            setattr(part, "fuse_wgrad_accumulation", True)  # noqa: B010


@contextlib.contextmanager
def without_fp8(config: TransformerConfig) -> Iterator[None]:
    """Products are computed in the weights' precision within it: what is measured while
    training is what a checkpoint of the same weights is measured at.
    """
    fp8, config.fp8 = config.fp8, None
    try:
        yield
    finally:
        config.fp8 = fp8


def is_norm(name: str) -> bool:
    """Whether a parameter of the model is the weight of a norm, by its name: alone, or in
    one of TransformerEngine's modules with the product behind it.
    """
    return name.endswith(("layernorm.weight", "layer_norm_weight"))


def initialize(
    module: torch.nn.Module,
    model: ModelSpec,
    config: TransformerConfig,
    seed: int,
    groups: ProcessGroupCollection,
) -> None:
    """Draw random weights that depend on `seed` and the weight's name alone, never on the layout.

    Every rank draws the whole of each of its tensors and keeps its own slice: fine for
    the small models that start from random, and what makes dp2, cp2, tp2 and pp2 train
    the same model from scratch. Normal(0, initializer_range), scaled by
    1/sqrt(2*layers) where a block writes into the residual stream.
    """
    first_layer = get_transformer_layer_offset(config, pp_rank=groups.pp.rank())
    for name, parameter in module.named_parameters():
        if is_norm(name):
            continue
        if name.endswith(".bias"):
            parameter.data.zero_()
            continue
        std = model.initializer_range
        if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            std /= math.sqrt(2 * model.num_hidden_layers)
        key = _global_name(name, first_layer, model.tie_word_embeddings)
        full = _draw(
            key, _full_shape(parameter, groups.tp.size()), model.vocab_size, std, seed
        )
        parameter.data.copy_(_shard(full, parameter, name, groups.tp))


def _global_name(name: str, first_layer: int, tied: bool) -> str:
    if tied and name == "output_layer.weight":
        return "embedding.word_embeddings.weight"
    return re.sub(
        r"layers\.(\d+)\.", lambda m: f"layers.{int(m[1]) + first_layer}.", name
    )


def _full_shape(parameter: Any, tp: int) -> list[int]:
    shape = list(parameter.shape)
    if getattr(parameter, "tensor_model_parallel", False):
        shape[parameter.partition_dim] *= tp
    return shape


def _draw(
    name: str, shape: list[int], vocabulary: int, std: float, seed: int
) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator(device="cpu").manual_seed(
        int.from_bytes(digest[:7], "big")
    )
    is_table = name in ("embedding.word_embeddings.weight", "output_layer.weight")
    drawn = [vocabulary, *shape[1:]] if is_table else shape
    values = torch.empty(drawn, dtype=torch.float32, device="cpu").normal_(
        0.0, std, generator=generator
    )
    # The padding of the vocabulary depends on tp, so it must not take part in the draw.
    return (
        torch.nn.functional.pad(values, (0, 0, 0, shape[0] - vocabulary))
        if is_table
        else values
    )


def _shard(
    full: torch.Tensor,
    parameter: Any,
    name: str,
    tp: torch.distributed.ProcessGroup,
) -> torch.Tensor:
    if not getattr(parameter, "tensor_model_parallel", False):
        return full
    dim, size, rank = parameter.partition_dim, tp.size(), tp.rank()
    if name.endswith("linear_fc1.weight"):
        gate, up = full.chunk(2, dim=0)
        return torch.cat([gate.chunk(size, dim=0)[rank], up.chunk(size, dim=0)[rank]])
    return full.chunk(size, dim=dim)[rank]
