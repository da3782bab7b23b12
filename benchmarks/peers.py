"""The programs that `gpu_peers.py` measures, each made ready for the same task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.model import add_gradients_in_products
from alia_ctx.mcore.runtime import Ranks
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from benchmarks.gpu_observed import leave_out_the_optimizer
from benchmarks.gpu_step import ROPE, draw_on_device
from benchmarks.releases import ENGINE, TE
from benchmarks.te_backends import require_flash, te_backend


@dataclass(frozen=True)
class Task:
    """What every peer does: one row, forward and backward, through a stack of layers."""

    model: ModelSpec
    row: PackedRow
    context: int
    repeats: int

    @property
    def tokens(self) -> torch.Tensor:
        """[1, context]."""
        return torch.as_tensor(self.row.tokens(), dtype=torch.long, device=device())[
            None
        ]

    @property
    def flops(self) -> float:
        """Useful ones, both ways; documents and the causal mask counted."""
        lengths = (self.row.doc_offsets[1:] - self.row.doc_offsets[:-1]).tolist()
        linear = self.model.linear_flops_per_token() * self.context
        return float(linear + self.model.attention_flops(lengths))


@dataclass(frozen=True)
class Step:
    """A peer made ready: `run` makes a step, forward, backward and reduction, and says its
    loss; `describe`, asked after it has run, what computes it.
    """

    run: Callable[[], float]
    parameters: int
    describe: Callable[[], str]


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def ours(
    task: Task, layers: str = "local", fp8: str = "off", attention: str = "auto"
) -> Step:
    """The product's engine; as many data-parallel ranks as there are. It holds weights and
    gradients alone, as the others do, reduces and gathers them as in training, and takes
    no optimizer step.
    """
    leave_out_the_optimizer()
    settings = EngineConfig(
        attention=attention,  # type: ignore[arg-type]
        layers=layers,  # type: ignore[arg-type]
        fp8=fp8,  # type: ignore[arg-type]
        fp8_bf16_layers=0,
    )
    engine = MegatronEngine(
        *(task.model, ROPE, task.context, Layout(), settings, OptimizerConfig()),
        initializer=draw_on_device,
    )

    def run() -> float:
        return engine.train_update([task.row], 0.0).loss

    words = f"{engine.kernel}, {engine.layers.words}, FP8 {engine.fp8}"
    return Step(run, sum(p.numel() for p in engine.parameters()), lambda: words)


def llama(task: Task, attention: str, *, liger: bool, fp32_gradients: bool) -> Step:
    """transformers' Llama, its products in bf16, sharded by FSDP2 where there are several
    ranks.
    """
    sharded = dist.is_initialized() and dist.get_world_size() > 1
    model = build_llama(
        task, attention, liger=liger, fp32_weights=sharded and fp32_gradients
    )
    parameters = sum(p.numel() for p in model.parameters())
    if sharded:
        shard(model)
    # FSDP2 calls no hook of accumulation; it keeps gradients in the weights' own format.
    sums = add_up_in_fp32(model) if fp32_gradients and not sharded else []
    tokens, positions = task.tokens, positions_of(task.row)

    def run() -> float:
        for total in sums:
            total.zero_()
        model.zero_grad(set_to_none=True)
        with _cudnn_first():
            loss = model(tokens, position_ids=positions, labels=tokens).loss
            loss.backward()
        return float(loss.detach())

    words = {"cute_by_document": "FlashAttention 4"}.get(attention, attention)
    if sharded and fp32_gradients:
        words += ", weights in fp32"
    return Step(run, parameters, lambda: words)


def build_llama(
    task: Task, attention: str, *, liger: bool, fp32_weights: bool
) -> torch.nn.Module:
    """transformers' Llama with random weights in bf16 (fp32 on a host) or in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(
            rope=True,
            swiglu=True,
            rms_norm=True,
            cross_entropy=False,
            fused_linear_cross_entropy=True,
        )
    spec = task.model
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_hidden_layers,
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=task.context,
        tie_word_embeddings=spec.tie_word_embeddings,
        use_cache=False,
        attn_implementation=attention,  # type: ignore[call-arg]
    )
    on_gpu = device().type == "cuda"
    torch.set_default_dtype(
        torch.bfloat16 if on_gpu and not fp32_weights else torch.float32
    )
    try:
        with device():
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def shard(model: torch.nn.Module) -> None:
    """FSDP2, a layer a unit: weights gathered in bf16, gradients reduced in fp32 and kept as
    the weights are. Of fp32 weights both are then in fp32, as FSDP2's documentation has
    it; of bf16 ones each reduced gradient is rounded.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32
    )
    for layer in model.model.layers:  # type: ignore[union-attr]
        fully_shard(layer, mp_policy=policy)  # type: ignore[arg-type]
    fully_shard(model, mp_policy=policy)


def positions_of(row: PackedRow) -> torch.Tensor:
    """[1, context]: places in the documents, which start anew in each."""
    starts = torch.as_tensor(row.doc_offsets, dtype=torch.long, device=device())
    places = torch.arange(int(starts[-1]), device=device())
    return (places - starts[torch.searchsorted(starts, places, right=True) - 1])[None]


def _cudnn_first() -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def add_up_in_fp32(model: torch.nn.Module) -> list[torch.Tensor]:
    """Let each gradient be added to a sum in fp32 as soon as it is there, and forgotten:
    how a trainer adds up the rows of an update without rounding. The sums.
    """
    sums = []
    for parameter in model.parameters():
        total = torch.zeros_like(parameter, dtype=torch.float32)
        sums.append(total)

        def add(p: torch.nn.Parameter, total: torch.Tensor = total) -> None:
            total.add_(p.grad)
            p.grad = None

        parameter.register_post_accumulate_grad_hook(add)
    return sums


def register_flash4(task: Task) -> str:
    """transformers' attention by FlashAttention 4, each document on its own."""
    from flash_attn.cute import flash_attn_varlen_func
    from transformers import AttentionInterface

    offsets = torch.as_tensor(task.row.doc_offsets, dtype=torch.int32, device=device())
    longest = int((offsets[1:] - offsets[:-1]).max())

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        out = flash_attn_varlen_func(
            *(t[0].transpose(0, 1).contiguous() for t in (query, key, value)),
            cu_seqlens_q=offsets,
            cu_seqlens_k=offsets,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            softmax_scale=scaling,
            causal=True,
        )
        return (out[0] if isinstance(out, tuple) else out)[None], None

    # No "flash" in the name: transformers takes such for a kernel of the hub's.
    AttentionInterface.register("cute_by_document", attend)
    return "cute_by_document"


def megatron_te(task: Task, fp8: str = "off", attention: str = "auto") -> Step:
    """Megatron-Core's own GPT on TransformerEngine's layers and attention, in its own
    DistributedDataParallel with fp32 gradients, to which the layers' products add theirs.

    `fp8` by its own recipes: one scale a tensor from its present values, or a block's.
    `attention` is its own setting (`attention_backend`): "auto", or "flash", by which it
    sets the variables of TransformerEngine in this process; UnableError where another
    kernel computes then.
    """
    import transformer_engine  # noqa: F401  # ImportError here, not deep in Megatron-Core
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
    )
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_layer_with_transformer_engine_spec,
    )
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.enums import AttnBackend

    ranks, spec = Ranks(Layout(), 0), task.model
    recipes = {
        "off": {},
        "current": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
        "blockwise": {"fp8": "e4m3", "fp8_recipe": "blockwise"},
    }
    config = TransformerConfig(
        num_layers=spec.num_hidden_layers,
        hidden_size=spec.hidden_size,
        ffn_hidden_size=spec.intermediate_size,
        num_attention_heads=spec.num_attention_heads,
        num_query_groups=spec.num_key_value_heads,
        kv_channels=spec.head_dim,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        bias_activation_fusion=True,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=torch.bfloat16,
        bf16=True,
        # Asks its own head for a kernel of Apex (megatron/core/tensor_parallel/layers.py);
        # `add_gradients_in_products` does the same for TransformerEngine's layers.
        gradient_accumulation_fusion=False,
        # Weights are cast to FP8 in each step, as where each row is an update.
        disable_parameter_transpose_cache=True,
        attention_backend=AttnBackend[attention],
        **recipes[fp8],
    )
    model = GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec(),
        vocab_size=spec.vocab_size,
        max_sequence_length=task.context,
        position_embedding_type="rope",
        rotary_base=10_000,
        share_embeddings_and_output_weights=spec.tie_word_embeddings,
        pg_collection=ranks.groups,
    ).to(device(), torch.bfloat16)
    draw_on_device(model, spec)  # as ours
    parameters = sum(p.numel() for p in model.parameters())
    several = dist.get_world_size() > 1
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=several,
        overlap_grad_reduce=several,
        overlap_param_gather=several,
    )
    chunk = DistributedDataParallel(config, settings, model)
    add_gradients_in_products(model)
    tokens, positions = task.tokens, positions_of(task.row)
    labels = tokens.roll(-1, 1)

    def run() -> float:
        chunk.zero_grad_buffer()
        loss = chunk(tokens, positions, None, labels=labels).float().mean()
        if attention == "flash":
            require_flash()
        loss.backward()
        chunk.finish_grad_sync()
        return float(loss.detach())

    return Step(run, parameters, lambda: f"{te_backend()}, FP8 {fp8}")


def torchtitan(task: Task, attention: str, weights: str = "float32") -> Step:
    """torchtitan's own Llama 3, FSDP2, compilation and loss."""
    from benchmarks.torchtitan_peer import make  # it takes Task and Step from here

    return make(task, attention, weights)


_LLAMA = {
    "transformers": {"liger": False, "fp32_gradients": False},
    "liger": {"liger": True, "fp32_gradients": False},
    "liger_fp32": {"liger": True, "fp32_gradients": True},
}
PEERS: dict[str, Callable[[Task], Step]] = {
    "ours": ours,
    **{
        name: functools.partial(llama, attention="sdpa", **options)
        for name, options in _LLAMA.items()
    },
    "liger_flash4": lambda task: llama(
        task, register_flash4(task), liger=True, fp32_gradients=True
    ),
    "ours_flash4": functools.partial(ours, attention="flash4"),
    "ours_te": functools.partial(ours, layers="te"),
    "megatron_te": megatron_te,
    "megatron_te_flash": functools.partial(megatron_te, attention="flash"),
    "ours_fp8_current": functools.partial(ours, layers="te", fp8="current"),
    "megatron_te_fp8_current": functools.partial(megatron_te, fp8="current"),
    "ours_fp8_blockwise": functools.partial(ours, layers="te", fp8="blockwise"),
    "megatron_te_fp8_blockwise": functools.partial(megatron_te, fp8="blockwise"),
    "torchtitan": functools.partial(torchtitan, attention="flex"),
    "torchtitan_flash": functools.partial(torchtitan, attention="flex_flash"),
    "torchtitan_sdpa": functools.partial(torchtitan, attention="sdpa"),
    "torchtitan_bf16": functools.partial(
        torchtitan, attention="sdpa", weights="bfloat16"
    ),
}


def packages_of(peer: str) -> tuple[str, ...]:
    """The distributions that may compute it (`releases.MODULES`), beside torch."""
    if peer.startswith("ours"):
        return ENGINE
    if peer.startswith("megatron"):
        return ("megatron-core", *TE)
    flash = ("flash-attn-4",) if "flash" in peer else ()
    if peer.startswith("torchtitan"):
        return ("torchtitan", *flash)
    liger = ("liger-kernel",) if peer.startswith("liger") else ()
    return ("transformers", *liger, *flash)
