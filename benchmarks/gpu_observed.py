"""What a step does on one GPU: memory at the points that tell its items apart, kernels, and
a step without an optimizer.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from alia_ctx.config.run import OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore import engine as engine_module
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.optimizer import StageOptimizer
from benchmarks.kernel_time import kernels_of, longest

GIB = 2**30
# Bytes a parameter: bf16 weight, fp32 gradient, fp32 main weight and two moments.
WITH_OPTIMIZER, GRADIENTS_ALONE = 18, 6


class GradientsAlone(StageOptimizer):
    """fp32 gradients as the stage's optimizer keeps them, and neither main weights nor
    moments: what a rank holds beside its share of them, where many ranks share.

    All that is not the step itself goes on as in training: gradients reduced bucket by
    bucket to the rank that would step them, and weights gathered from there, beside the
    computation where `overlap` says so. Nothing is stepped and no norm is formed.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        config: TransformerConfig,
        constants: OptimizerConfig,
        *,
        overlap: bool,
    ) -> None:
        self.constants = constants
        self._wrap(module, config, overlap)

    def begin_update(self) -> None:
        self.chunk.zero_grad_buffer()

    def step_if_finite(self, loss: float, learning_rate: float) -> float:
        """No step, and no norm; the weights are gathered where no forward does it."""
        if not self._gathers_late:
            self.chunk.start_param_sync()
        return 0.0


def leave_out_the_optimizer() -> None:
    """Engines built from now on in this process have gradients alone."""
    setattr(engine_module, "StageOptimizer", GradientsAlone)  # noqa: B010


class Told:
    """Lines on standard error that say what has been done, and the seconds that it took, so
    that one who waits knows for what.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()

    def say(self, done: str) -> None:
        now = time.monotonic()
        print(f"{done} ({now - self._last:.1f} s)", file=sys.stderr, flush=True)
        self._last = now


class Memory:
    """What the allocator holds at the points of a step that tell its items apart, in GiB."""

    def __init__(self, engine: MegatronEngine) -> None:
        self.at_loss = 0
        engine.module.decoder.final_layernorm.register_forward_hook(self._before_loss)

    def _before_loss(self, *_: Any) -> None:
        self.at_loss = torch.cuda.memory_allocated()

    def report(
        self, engine: MegatronEngine, peaks: tuple[int, int]
    ) -> dict[str, float]:
        alone = isinstance(engine.optimizer, GradientsAlone)
        each = GRADIENTS_ALONE if alone else WITH_OPTIMIZER
        state = each * sum(p.numel() for p in engine.parameters())
        items = {
            "weights, gradients, optimizer": state,
            "saved by the forward": self.at_loss - state,
            "more at the step's peak": peaks[0] - self.at_loss,
        }
        context = engine.passes.forward_context
        pool = getattr(getattr(context, "__self__", None), "buffers", None)
        on_host = 0 if pool is None else pool.count * pool.nbytes
        return {name: size / GIB for name, size in items.items()} | {
            "peak of compute": peaks[0] / GIB,
            "peak of the optimizer": peaks[1] / GIB,
            "reserved": torch.cuda.max_memory_reserved() / GIB,
            "inputs on the host": on_host / GIB,
        }


def peaks_of_a_step(engine: MegatronEngine, row: PackedRow) -> tuple[int, int]:
    """Peak bytes allocated up to the gradients, and in the optimizer's step.

    Takes two steps; the first compiles.
    """
    assert engine.optimizer is not None
    engine.train_update([row], 1e-6)
    torch.cuda.reset_peak_memory_stats()
    loss, _ = engine.reduce_losses(engine.accumulate_gradients([row]))
    compute = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    engine.optimizer.step_if_finite(loss, 1e-6)
    return compute, torch.cuda.max_memory_allocated()


def print_profile(engine: MegatronEngine, row: PackedRow) -> None:
    """The kernels of one more step, on standard error."""
    kernels = longest(kernels_of(lambda: engine.train_update([row], 1e-6)))
    whole = sum(taken for _, _, taken in kernels)
    print("| kernel | calls | ms | share |\n|---|---|---|---|", file=sys.stderr)
    for name, calls, taken in kernels[:25]:
        print(
            f"| {name[:110]} | {calls} | {taken:.2f} | {taken / whole:.3f} |",
            file=sys.stderr,
        )
