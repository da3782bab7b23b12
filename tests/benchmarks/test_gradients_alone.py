"""A step that is measured without an optimizer talks to other ranks as training does."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.distributed import param_and_grad_buffer

from alia_ctx.config.run import EngineConfig
from alia_ctx.mcore import engine as engine_module
from alia_ctx.mcore import optimizer as optimizer_module
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from benchmarks import gpu_observed
from tests.distributed import run_distributed
from tests.engine import make_engine, rows_of

BUCKET = 8192  # parameters; upstream's own would take the small model in one
# kind, number format, numbers, and whether it begins before the backward has ended
Call = tuple[str, str, int, bool]


def update_of(rank: int, alone: bool, overlap: bool) -> tuple[dict[Call, int], float]:
    """What rank 0 calls of an update's collectives, and how often; the update's loss."""
    made = gpu_observed.GradientsAlone if alone else engine_module.StageOptimizer

    def on_a_gpu(*arguments: Any, **options: Any) -> Any:
        return made(*arguments, **{**options, "overlap": overlap})

    with pytest.MonkeyPatch.context() as patch, Distributed(EngineConfig()):
        settings = functools.partial(
            optimizer_module.DistributedDataParallelConfig, bucket_size=BUCKET
        )
        patch.setattr(optimizer_module, "DistributedDataParallelConfig", settings)
        patch.setattr(engine_module, "StageOptimizer", on_a_gpu)
        engine = make_engine(Layout(), precision="bf16")
        rows = rows_of(0)[rank::2]
        engine.train_update(rows, 0.0)  # upstream begins later in the first
        calls = watch(engine, patch)
        loss = engine.train_update(rows, 0.0).loss
        return dict(calls), loss


def watch(engine: MegatronEngine, patch: pytest.MonkeyPatch) -> Counter[Call]:
    """Count the collectives that are called from now on."""
    calls: Counter[Call] = Counter()
    running = True

    def watched(kind: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            tensor: torch.Tensor = arguments[0]
            calls[kind, str(tensor.dtype), tensor.numel(), running] += 1
            return function(*arguments, **options)

        return call

    config = engine.module.config
    finish = config.finalize_model_grads_func

    def finished(*arguments: Any, **options: Any) -> Any:
        nonlocal running
        running = False
        return finish(*arguments, **options)

    config.finalize_model_grads_func = finished
    patch.setattr(dist, "all_reduce", watched("reduce", dist.all_reduce))
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        function = getattr(param_and_grad_buffer, name)
        patch.setattr(param_and_grad_buffer, name, watched(name, function))
    return calls


@pytest.mark.parametrize("overlap", [True, False])
def test_the_same_collectives_as_in_training(overlap: bool) -> None:
    (trained, loss), (alone, same_loss) = (
        run_distributed(update_of, 2, alone, overlap)[0] for alone in (False, True)
    )
    assert same_loss == loss
    # The step's own: a norm and whether it is finite, one number each.
    step = {call for call in trained if call[0] == "reduce" and call[2] == 1}
    assert step
    own = {call: count for call, count in trained.items() if call not in step}
    assert {call: n for call, n in alone.items() if call not in step} == own

    reduced = [call for call in own if call[0] == "dist_reduce_scatter_func"]
    gathered = [call for call in own if call[0] == "dist_all_gather_func"]
    parameters = sum(
        size * own[kind, dtype, size, early] for kind, dtype, size, early in reduced
    )
    assert parameters == sum(call[2] // 2 * own[call] for call in gathered) > BUCKET
    assert {call[1] for call in reduced} == {"torch.float32"}
    assert {call[1] for call in gathered} == {"torch.bfloat16"}
    assert {call[3] for call in (*reduced, *gathered)} == {overlap}
    assert (sum(own[call] for call in reduced) > 3) == overlap, "buckets"
