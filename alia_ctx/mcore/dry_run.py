"""One rank of a layout without its memory: the real model and optimizer on meta tensors, in
a process group that sends nothing, counted.

    echo '[{...}, ...]' | python -m alia_ctx.mcore.dry_run

reads a JSON list of what is in `DryRun` and prints a JSON list of counts. It wants a
process of its own: the adapter that stands in for CUDA is made to give meta tensors, and
stays so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.transformer.module import Float16Module
from torch.nn.attention.varlen import varlen_attn
from torch.testing._internal.distributed.fake_pg import FakeStore

from alia_ctx.config.run import OptimizerConfig
from alia_ctx.mcore import adam, host
from alia_ctx.mcore.attention import PackedAttention, row_geometry
from alia_ctx.mcore.model import (
    ModelOptions,
    RMSNorm,
    build_model,
    transformer_config,
)
from alia_ctx.mcore.optimizer import StageOptimizer
from alia_ctx.mcore.quiet import quiet_upstream
from alia_ctx.mcore.runtime import Ranks, end_model_parallel
from alia_ctx.nn.attention_kernels import Kernel, VarlenSpec
from alia_ctx.spec.execution import Precision, Recompute
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

_BACKEND = "cpu:fake,meta:fake"


@dataclass(frozen=True)
class DryRun:
    """The first rank of a layout: of its pipeline, and of the ranks that cut a row, where it
    collects the keys and values of the whole row.

    Its layers are Megatron-Core's own, in `precision`: TransformerEngine's, and so products
    in FP8, cannot be built without a GPU. Who asks with them is told of a rank in bf16.
    """

    model: ModelSpec
    context: int
    layout: Layout
    world_size: int
    recompute: Recompute = "none"
    precision: Precision = "bf16"

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> DryRun:
        parts = dict(document)
        parts["model"] = ModelSpec(**parts["model"])
        parts["layout"] = Layout(**parts["layout"])
        return cls(**parts)


@dataclass(frozen=True)
class Counts:
    """Of one rank: parameters, bytes of its optimizer's state (main weights that the model
    does not compute with, and moments), and bytes that the forward of one row through
    its layers keeps for the backward.
    """

    parameters: int
    optimizer_bytes: int
    activation_bytes: int


def count(asked: DryRun) -> Counts:
    """Build what `asked` describes and count it."""
    with _fake_ranks(asked.world_size):
        ranks = Ranks(asked.layout, seed=0)
        options = ModelOptions(
            asked.precision, "reference", asked.recompute, False, True
        )
        config = transformer_config(asked.model, asked.layout, options)
        config.use_cpu_initialization = True  # upstream's other way wants a GPU's seed
        with torch.device("meta"):
            module = build_model(
                asked.model, config, asked.context, options, ranks.groups
            )
            bf16 = asked.precision == "bf16"
            wrapped = Float16Module(config, module) if bf16 else module
            optimizer = StageOptimizer(
                wrapped, config, OptimizerConfig(), overlap=False
            )
            # Before the forward, for which the last norm is taken off.
            parameters = sum(parameter.numel() for parameter in module.parameters())
            saved = _saved_bytes(asked, module, ranks)
        return Counts(parameters, _optimizer_bytes(optimizer, bf16=bf16), saved)


@contextmanager
def _fake_ranks(world_size: int) -> Iterator[None]:
    """Rank 0 of `world_size` ranks, of which there is no other."""
    host.activate(torch.device("meta"))
    adam.use_group_step_adam()
    dist.init_process_group(_BACKEND, store=FakeStore(), rank=0, world_size=world_size)
    # Upstream asks for groups of gloo beside the others, which no fake store can start
    # (megatron/core/parallel_state.py).
    new_group = dist.new_group
    dist.new_group = lambda *ranks, **options: new_group(
        *ranks, **{**options, "backend": _BACKEND}
    )
    try:
        with quiet_upstream():
            yield
    finally:
        dist.new_group = new_group
        end_model_parallel()
        dist.destroy_process_group()


def _optimizer_bytes(optimizer: StageOptimizer, *, bf16: bool) -> int:
    """In fp32 the main weights are the model's own, which are counted as weights."""
    return sum(
        values.nbytes
        for _, states in optimizer.states()
        for name, values in states.items()
        if bf16 or name != "param"
    )


def _saved_bytes(asked: DryRun, module: torch.nn.Module, ranks: Ranks) -> int:
    """Bytes of the tensors that autograd keeps of a row's forward through this rank's layers,
    each storage once; without weights, and without what all layers share of the row.
    """
    for part in module.modules():
        if isinstance(part, PackedAttention):
            part.kernel = Kernel("torch_varlen", _varlen)
        elif isinstance(part, RMSNorm):
            setattr(part, "forward", functools.partial(_GpuNorm.apply, part.weight))  # noqa: B010
    decoder: Any = module.decoder
    decoder.final_layernorm = None  # of the head, which is counted with the loss
    rope = RopeSpec("default", 10_000.0)
    row = row_geometry(
        np.array([0, asked.context]),
        asked.context,
        asked.layout.cp,
        0,
        rope,
        asked.model.head_dim,
        "meta",
    )
    own = asked.context // asked.layout.cp // asked.layout.tp
    hidden = torch.empty(
        (own, 1, asked.model.hidden_size),
        dtype=decoder.config.params_dtype,
        requires_grad=True,
    )
    shared = [row.cos, row.sin]
    shared += [t for spec in row.specs for t in (spec.cu_seqlens_q, spec.cu_seqlens_k)]
    known = set(_storages([*module.parameters(), *shared]))
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.update(_storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = decoder(
            hidden_states=hidden, attention_mask=None, packed_seq_params=row
        )
    sizes = (storage.nbytes() for key, storage in kept.items() if key not in known)
    total = sum(sizes)
    del output
    return total


def _storages(tensors: Iterable[torch.Tensor]) -> dict[int, torch.UntypedStorage]:
    """Storages by what tells them apart: meta tensors have no address."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage for storage in storages}


class _GpuNorm(torch.autograd.Function):
    """Keeps what torch's CUDA kernel of the norm keeps: its input, the weight and 1/rms
    (`_fused_rms_norm` in torch's table of derivatives). On meta tensors torch takes the norm
    apart, and autograd would keep fp32 copies that no GPU has.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        inverse_rms = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(x, weight, inverse_rms)
        return torch.empty_like(x)


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: VarlenSpec, scale: float
) -> torch.Tensor:
    """torch's FlashAttention, whose shapes and saved tensors are known without a GPU."""
    output = varlen_attn(
        *(q, k, v, spec.cu_seqlens_q, spec.cu_seqlens_k),
        *(spec.max_seqlen_q, spec.max_seqlen_k),
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(output, torch.Tensor)  # without statistics
    return output


def main() -> None:
    """Standard input to standard output; what upstream prints goes to standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    asked = [DryRun.from_json(document) for document in json.load(sys.stdin)]
    counted = [dataclasses.asdict(count(each)) for each in asked]
    print(json.dumps(counted), file=out)


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main()
