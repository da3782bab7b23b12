"""A stage's gradients and AdamW: buckets, reduction, finite steps, and the optimizer's
part in a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import DistributedOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from alia_ctx.checkpoint.dcp_store import open_state
from alia_ctx.config.run import OptimizerConfig
from alia_ctx.errors import CheckpointError
from alia_ctx.mcore.owned_state import OwnedRange, read_owned


class StageOptimizer:
    """Megatron's distributed AdamW over `module`: each data-parallel rank keeps and steps
    its own range of the weights.

    Args:
        module: this rank's part of the model, in the precision in which it computes.
        config: upstream's configuration of the model; the hooks by which upstream's
            schedules reduce gradients and gather weights are put into it.
        constants: AdamW's, from the run's configuration.
        overlap: whether reductions and gathers go on beside computation.

    Attributes:
        chunk: the module in DDP's wrapper, which upstream's schedules drive.
        upstream: Megatron's optimizer itself.
        owned: what this rank owns of it.
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
        self.upstream = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=0.0,
                adam_beta1=constants.beta1,
                adam_beta2=constants.beta2,
                adam_eps=constants.epsilon,
                weight_decay=constants.weight_decay,
                clip_grad=constants.clip_grad,
                bf16=config.bf16,
                params_dtype=config.params_dtype,
                use_distributed_optimizer=True,
                overlap_param_gather=overlap,
            ),
            [self.chunk],
        )
        self._distributed = _the_only_one(self.upstream)
        # The moments exist from the start: memory runs out now or never, and update 0
        # can be saved. Upstream makes them in the first step, or when it loads
        # (megatron/core/optimizer/distrib_optimizer.py).
        self._distributed.init_state_fn(
            self._distributed.optimizer, self._distributed.config
        )
        self.owned = OwnedRange(self._distributed)
        self._apply_constants()
        config.grad_scale_func = self.upstream.scale_loss

    def _wrap(
        self, module: torch.nn.Module, config: TransformerConfig, overlap: bool
    ) -> None:
        """Set `chunk`, and the hooks by which upstream's schedules reduce and gather."""
        self._gathers_late = overlap
        self._communication = 0.0
        settings = DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            overlap_grad_reduce=overlap,
            overlap_param_gather=overlap,
            grad_reduce_in_fp32=True,
        )
        self.chunk = DistributedDataParallel(config, settings, module)
        config.finalize_model_grads_func = self._reduce_gradients
        if overlap:
            config.no_sync_func = self.chunk.no_sync
            config.param_sync_func = self.chunk.start_param_sync

    # -- an update ---------------------------------------------------------------------

    def begin_update(self) -> None:
        """Forget the gradients of the update before."""
        self.chunk.zero_grad_buffer()
        self.upstream.zero_grad()

    def step_if_finite(self, loss: float, learning_rate: float) -> float:
        """Step unless loss or gradient norm (returned) are not finite: every rank decides
        alike. Collective.

        Upstream clips by a NaN norm into NaN weights
        (megatron/core/optimizer/clip_grads.py), so the norm is looked at before its step
        is called. The step then forms it once more, from gradients already prepared.
        """
        if not math.isfinite(loss):
            return math.nan
        self.upstream.prepare_grads()
        norm = float(self.upstream.get_grad_norm())
        if math.isfinite(norm):
            for group in self.upstream.param_groups:
                group["lr"] = learning_rate
            self.upstream.step()
        return norm

    def _apply_constants(self) -> None:
        """Give every parameter group the configured constants: also after a load, which
        brings those of the run that wrote the checkpoint.

        Upstream builds all groups with one weight decay and leaves `wd_mult`, 0 for norms
        and biases, to its scheduler (megatron/core/optimizer_param_scheduler.py), which
        does not run here. Without this line norms and biases would decay.
        """
        constants = self.constants
        for group in self.upstream.param_groups:
            group["betas"] = (constants.beta1, constants.beta2)
            group["eps"] = constants.epsilon
            group["weight_decay"] = constants.weight_decay * group["wd_mult"]

    def take_communication_seconds(self) -> float:
        """Seconds of gradient reduction that nothing hid, since this was last asked."""
        seconds, self._communication = self._communication, 0.0
        return seconds

    def _reduce_gradients(self, *arguments: Any, **options: Any) -> None:
        torch.cuda.synchronize()
        started = time.perf_counter()
        finalize_model_grads(*arguments, **options)
        torch.cuda.synchronize()
        self._communication += time.perf_counter() - started

    # -- its part in a checkpoint ------------------------------------------------------

    def gather_weights(self) -> None:
        """Make every rank's whole weights current. Collective.

        With overlap they are so only in the next forward; each rank's own range of them
        always is.
        """
        if self._gathers_late:
            self.chunk.start_param_sync(force_sync=True)

    def load(
        self, directory: Path, model: dict[str, Any], common: Any, *, with_moments: bool
    ) -> None:
        """Load this rank's ranges from the `state` directory that the weights of `model`, a
        sharded state dict, were loaded from. `common` is its common state.

        Main weights are read in the precision in which the checkpoint keeps them. Moments
        and steps are the checkpoint's `with_moments`, and else begin anew. The constants
        stay the configuration's. Call `publish` then. Raises CheckpointError where
        moments are asked of a checkpoint that has none, or where they are not of this
        model.
        """
        if with_moments and not common:
            raise CheckpointError("it holds no optimizer state")
        if with_moments:
            self._distributed.load_state_dict({"optimizer": common["optimizer"]})
            self._apply_constants()
        else:
            self._forget()
        with open_state(directory) as reader:
            names = self.owned.state_names if with_moments else ("param",)
            read_owned(model, self.owned, reader, names)

    def publish(self) -> None:
        """Round the main weights into the model's, on every rank alike. Collective.

        What is loaded may be finer than the weights (a checkpoint of bf16 training in
        an fp32 engine), and each rank has read its own range alone: without this step
        ranks would compute one update with different weights.
        """
        for parameter, owned in self.owned.ranges().items():
            main = self.owned.states(parameter)["param"]
            parameter.data.view(-1)[owned].copy_(main)
        self.chunk.start_param_sync(force_sync=True)

    def _forget(self) -> None:
        """Moments and steps as before the first update."""
        for _, states in self.states():
            for name in states.keys() - {"param"}:
                states[name].zero_()
        for group in self.upstream.param_groups:
            if "step" in group:
                group["step"] = 0

    def states(self) -> Iterator[tuple[torch.nn.Parameter, dict[str, torch.Tensor]]]:
        """This rank's range of each parameter's main weight (`param`) and moments, flat."""
        for parameter in self.owned.ranges():
            yield parameter, self.owned.states(parameter)


def _the_only_one(optimizer: Any) -> DistributedOptimizer:
    """Upstream's distributed optimizer itself, out of the chain of one that it comes in."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    if len(parts) != 1:
        raise NotImplementedError(
            "upstream split the optimizer, whose state would need names of its own"
        )
    return parts[0]
