"""The engine: one stage's model on Megatron-Core, run, saved and loaded, behind a small
interface.

The trainer sees updates of rows, losses and directories; everything about process
groups, pipelines, buckets and sharded states stays here and below.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer.module import Float16Module

from alia_ctx.checkpoint.background_save import BackgroundSave
from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import LayoutError
from alia_ctx.mcore.forward_backward import ForwardBackward
from alia_ctx.mcore.model import (
    Initializer,
    ModelOptions,
    add_gradients_in_products,
    build_model,
    initialize,
    transformer_config,
    without_fp8,
)
from alia_ctx.mcore.offloading import offloading, saves_inputs_alone
from alia_ctx.mcore.optimizer import StageOptimizer
from alia_ctx.mcore.padding import TokenPadding
from alia_ctx.mcore.runtime import Ranks
from alia_ctx.mcore.saved_state import SavedState
from alia_ctx.nn.attention_kernels import Heads, choose_kernel
from alia_ctx.nn.context_parallel import Balance
from alia_ctx.nn.layer_choice import choose_layers
from alia_ctx.spec.execution import (
    FP8_MULTIPLE,
    Fp8,
    Precision,
    Recompute,
    fp8_problem,
)
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.agreement import on_all_ranks
from alia_ctx.train.engine import RowLosses, UpdateResult
from alia_ctx.train.rendezvous import World


class MegatronEngine(Ranks):
    """Megatron-Core behind `alia_ctx.train.engine.Engine`. Needs an entered `Distributed`.

    Args:
        model: sizes of the model.
        rope: rotary embedding of this stage.
        context: tokens of a row, T, at most.
        layout: parallel sizes; data parallelism takes what is left of the world.
        engine: precision, kernel, communication.
        optimizer: AdamW's constants; None builds no optimizer and no gradient buffers (evaluation).
        recompute: activation recomputation: none, selective (MLP), full.
        seed: of the random weights, where a stage starts from random.
        initializer: draws them; the default draws on the host, alike on every layout.

    Attributes:
        module: this rank's part of the model, as upstream builds it.
        chunk: what upstream's schedules drive: the module in its wrappers.
        optimizer: the stage's optimizer, or None.
        kernel, kernels_passed_over: the attention kernel by name, and why no faster one.
        layers: whose layers were chosen, and why not others.
        fp8: how the layers' products are scaled in training; `off` without an optimizer.
        passes: forward and backward over rows.

    Raises LayoutError, before any memory is taken, where the layout fits neither model,
    row nor world, attention kernel or layers are not installed, or a host lacks the
    memory for `engine.offload_activations`; RanksDifferError, on all, where a rank takes
    another kernel or other layers than the first.
    """

    def __init__(
        self,
        model: ModelSpec,
        rope: RopeSpec,
        context: int,
        layout: Layout,
        engine: EngineConfig,
        optimizer: OptimizerConfig | None,
        *,
        recompute: Recompute = "none",
        seed: int = 1234,
        initializer: Initializer = initialize,
    ) -> None:
        self.model, self.rope, self.context = model, rope, context
        self.layout, self.config = layout, engine
        problems = layout.problems("layout", model, context, dist.get_world_size())
        if problems:
            raise LayoutError(
                "\n".join(["the layout does not fit", *(f"  {p}" for p in problems)])
            )
        on_gpu = (device := torch.device(torch.cuda.current_device()).type) == "cuda"
        heads = Heads.of(model, engine.precision, layout.tp)
        # A checkpoint is measured as it is exported: in the precision of its weights.
        self.fp8: Fp8 = "off" if optimizer is None else engine.fp8
        # A host that lacks a package would compute otherwise than the others, and all would
        # wait for it; one that cannot compute at all would leave them waiting for nothing.
        choice, self.layers = on_all_ranks(
            World(),
            "attention kernel and layers",
            lambda: (
                choose_kernel(engine.attention, device, heads),
                choose_layers(engine.layers, self.fp8, engine.precision, device),
            ),
            lambda chosen: f"{chosen[0].kernel.name}, layers by {chosen[1].words}",
            "install the same packages on every host (`alia-ctx doctor` on all ranks says why "
            "one is not taken), or name what all have: engine.attention, engine.layers",
        )
        self.kernel, self.kernels_passed_over = choice.kernel.name, choice.passed_over
        _check_fp8(self.fp8, model, layout, engine.fp8_bf16_layers)
        super().__init__(
            layout,
            seed,
            engine.timeout_minutes,
            tensor_parallel_first=engine.tp_overlap_chunks > 1,
        )
        options = ModelOptions(
            engine.precision,
            self.kernel,
            recompute,
            engine.deterministic,
            on_gpu,
            engine.loss_chunk_tokens,
            self.layers.name,
            self.fp8,
            engine.fp8_bf16_layers,
            mlp_chunk_tokens=engine.mlp_chunk_tokens,
            tp_overlap_chunks=engine.tp_overlap_chunks,
        )
        config = transformer_config(model, layout, options)
        self.module = build_model(model, config, context, options, self.groups)
        initializer(self.module, model, config, seed, self.groups)
        wrapped = (
            self.module
            if engine.precision == "fp32"
            else Float16Module(config, self.module)
        )
        self.optimizer: StageOptimizer | None = None
        self.chunk: torch.nn.Module
        if optimizer is None:
            self.chunk = wrapped.eval()
        else:
            self.optimizer = StageOptimizer(
                wrapped,
                config,
                optimizer,
                overlap=engine.overlap_communication and on_gpu,
            )
            self.chunk = self.optimizer.chunk
            if not engine.offload_activations or saves_inputs_alone(self.module):
                add_gradients_in_products(self.module)
        self._saved = SavedState(
            self.module,
            self.optimizer,
            self,
            vocab_size=model.vocab_size,
        )
        multiple = 1 if self.fp8 == "off" else FP8_MULTIPLE
        padding = TokenPadding(self.module, self.groups.tp, multiple)
        self.passes = ForwardBackward(
            self.chunk,
            self.module.output_layer if self.is_last_pp_rank else None,
            self,
            vocab_size=model.vocab_size,
            context=context,
            rope=rope,
            head_dim=model.head_dim,
            balance=Balance.of(model) if engine.context_split == "balanced" else None,
            forward_context=offloading(self.module, context, padding, self)
            if engine.offload_activations and self.optimizer is not None
            else contextlib.nullcontext,
            padding=padding,
        )

    @property
    def precision_on_disk(self) -> dict[str, Precision | None]:
        """Of what `begin_save` writes: weights computed with, main weights stepped."""
        main: Precision | None = None if self.optimizer is None else "fp32"
        return {"weights": self.config.precision, "main_weights": main}

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """This rank's parameters."""
        return self.module.parameters()

    # -- training ----------------------------------------------------------------------

    def train_update(
        self, rows: Sequence[PackedRow], learning_rate: float
    ) -> UpdateResult:
        """One optimizer update over `rows`, those of this data-parallel rank; ranks may
        bring unequal numbers.

        The loss is the sum over the update's predicted tokens of all ranks divided once
        by their number. Raises nothing on a NaN or infinite gradient: the update is
        then skipped and the result says so. So is one in which nothing is predicted: it
        has no gradient, and a step would decay weights and move momentum all the same.
        """
        optimizer = self._training()
        started = time.perf_counter()
        losses = self.accumulate_gradients(rows)
        loss, predicted = self.reduce_losses(losses)
        computed = time.perf_counter()
        communication = optimizer.take_communication_seconds()
        norm = optimizer.step_if_finite(loss, learning_rate) if predicted else 0.0
        return UpdateResult(
            loss=loss,
            predicted_tokens=predicted,
            gradient_norm=norm,
            applied=predicted > 0 and math.isfinite(loss) and math.isfinite(norm),
            losses=tuple(losses),
            compute_seconds=computed - started - communication,
            communication_seconds=communication,
            step_seconds=time.perf_counter() - computed,
        )

    def accumulate_gradients(self, rows: Sequence[PackedRow]) -> list[RowLosses]:
        """Losses of `rows`, and the update's gradients, reduced over all ranks and divided
        by the number of predicted tokens, in `main_grad` of this rank's own ranges.
        """
        self._training().begin_update()
        return self.passes.rows(rows, forward_only=False)

    def row_losses(self, rows: Sequence[PackedRow]) -> tuple[RowLosses, ...]:
        """Losses and hits per token of `rows` without training, on the ranks that report
        losses (empty elsewhere).
        """
        self.chunk.eval()
        try:
            with torch.no_grad(), without_fp8(self.module.config):
                return tuple(self.passes.rows(rows, forward_only=True))
        finally:
            if self.optimizer is not None:
                self.chunk.train()

    def logits(self, row: PackedRow) -> torch.Tensor | None:
        """fp32 logits [t, vocab] of this CP rank's tokens;

        for verification at small sizes, layouts with pp=1 only.
        """
        if self.layout.pp > 1:
            raise LayoutError(
                "logits are for verification on one pipeline rank; use pp=1"
            )
        batch = self.passes.batch(row)
        with torch.no_grad(), without_fp8(self.module.config):
            local = self.passes.forward(batch, self.chunk)
            full = gather_from_tensor_model_parallel_region(local, group=self.groups.tp)
        tokens = len(batch.geometry.cos)
        return full[0, :tokens, : self.model.vocab_size].float()

    def _training(self) -> StageOptimizer:
        if self.optimizer is None:
            raise LayoutError("this engine was built without an optimizer")
        return self.optimizer

    def reduce_losses(self, losses: Sequence[RowLosses]) -> tuple[float, int]:
        """Mean loss over the predicted tokens of all ranks' `losses`, and their number.

        Collective.
        """
        sums = [[row.total, row.predicted.sum()] for row in losses]
        total, predicted = self.sum_over_ranks(
            np.array(sums or [[0.0, 0.0]], dtype=np.float64).sum(axis=0)
        )
        return float(total / max(predicted, 1)), int(predicted)

    # -- weights and state on disk -----------------------------------------------------

    def begin_save(
        self, directory: Path, *, with_optimizer: bool = True
    ) -> BackgroundSave:
        """Start writing weights, and optimizer state where there is one, into a begun
        checkpoint. Collective.

        One save at a time: the memory that is written from is the same for all.
        """
        return self._saved.begin_save(directory, with_optimizer=with_optimizer)

    def load(self, directory: Path, *, with_optimizer: bool) -> None:
        """Load the `state` directory of what `begin_save` or an import wrote, under any
        layout. Collective.

        The weights are the most precise ones that the checkpoint holds, rounded to the
        engine's precision: fp32 main weights where it was written with optimizer state.
        Without the optimizer its moments and steps start afresh. Raises CheckpointError
        naming the directory where a tensor is missing, misshapen or unreadable.
        """
        if with_optimizer:
            self._training()
        self._saved.load(directory, with_optimizer=with_optimizer)


def _check_fp8(fp8: Fp8, model: ModelSpec, layout: Layout, bf16_layers: int) -> None:
    problem = fp8_problem(model, layout, bf16_layers) if fp8 != "off" else None
    if problem is not None:
        raise LayoutError(f"engine.fp8={fp8}: {'; '.join(problem)}")
