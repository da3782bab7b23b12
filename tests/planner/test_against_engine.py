"""The planner's activations against what autograd keeps in the real engine, to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.planner.layer_memory import layer_activations
from alia_ctx.planner.memory import rank_parameters
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from tests.distributed import run_distributed

CONTEXT, FP32 = 256, 4


def spec(layers: int) -> ModelSpec:
    return ModelSpec(layers, 64, 192, 8, 2, 8, 128)


def kept(layers: int, layout: Layout, recompute: str) -> tuple[int, int]:
    """(bytes that forward keeps for backward, weights apart;

    parameters) of the engine on this rank.
    """
    from alia_ctx.mcore.engine import MegatronEngine

    engine = MegatronEngine(
        spec(layers),
        RopeSpec("default", 10_000),
        CONTEXT,
        layout,
        EngineConfig(device="cpu", precision="fp32", attention="reference"),
        OptimizerConfig(),
        recompute=recompute,
    )
    parameters = list(engine.module.parameters())
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    storages: dict[int, Any] = {}
    in_forward = True

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if in_forward and storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal in_forward
        in_forward = False
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        engine.train_update(
            [PackedRow.from_documents([np.arange(CONTEXT) % 128], length=CONTEXT)], 0.0
        )
    return sum(storage.nbytes() for storage in storages.values()), sum(
        p.numel() for p in parameters
    )


def measure(rank: int, layout: Layout, recompute: str) -> tuple[int, int]:
    """(bytes kept for a layer, parameters of the model of four layers) on this rank."""
    from alia_ctx.mcore import adam, host

    host.activate()
    adam.use_group_step_adam()
    two, _ = kept(2, layout, recompute)
    four, parameters = kept(4, layout, recompute)
    return (four - two) // 2, parameters


def host_extras(work: Workload) -> int:
    """What the host's unfused operators keep on top:

    the normed states before the weight, 1/rms, silu and its copy.
    """
    tokens = work.local_tokens
    own = tokens // work.layout.tp
    norms = 2 * own * (work.model.hidden_size + 1) * FP32
    return norms + (
        2 * tokens * work.model.intermediate_size // work.layout.tp * FP32
        if work.recompute == "none"
        else 0
    )


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "layout", [Layout(), Layout(cp=2), Layout(tp=2)], ids=["alone", "cp2", "tp2"]
)
def test_a_layer_keeps_what_the_planner_says(layout: Layout, recompute: str) -> None:
    measured = run_distributed(measure, layout.model_ranks, layout, recompute)
    work = Workload(
        spec(4),
        CONTEXT,
        layout,
        layout.model_ranks,
        CONTEXT,
        CONTEXT,
        recompute,
        "fp32",
    )
    saved, collected = layer_activations(work)
    expected = saved if recompute == "full" else saved + collected + host_extras(work)
    assert measured[0] == (expected, rank_parameters(work, 0)), (
        "rank 0 collects the whole row"
    )
