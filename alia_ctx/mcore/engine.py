"""The engine: one stage's model, gradients and optimizer on Megatron-Core, behind a
small interface.

The trainer sees updates of rows, losses and directories; everything about process
groups, pipelines, buckets and sharded states stays here.
"""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import Float16Module
from torch.distributed.checkpoint.api import CheckpointException

from alia_ctx.checkpoint.background_save import BackgroundSave, Staging
from alia_ctx.checkpoint.closed_pickles import closed_unpickling
from alia_ctx.checkpoint.dcp_store import open_state
from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import CheckpointError, LayoutError
from alia_ctx.mcore.attention import RowGeometry, row_geometry
from alia_ctx.mcore.model import (
    DTYPES,
    ModelOptions,
    build_model,
    initialize,
    transformer_config,
)
from alia_ctx.mcore.owned_state import owned_state, read_moments
from alia_ctx.nn.activation_offload import offload_activations
from alia_ctx.nn.attention_kernels import resolve_kernel
from alia_ctx.nn.context_parallel import Balance, Range
from alia_ctx.nn.linear_cross_entropy import vocab_parallel_loss
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.engine import RowLosses, UpdateResult

_Pending = list[tuple[PackedRow, tuple[Range, ...], torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Batch:
    """One row on this CP rank:

    t = T/cp tokens. `tokens` only where the pipeline starts, `targets` where it ends.
    """

    row: PackedRow
    geometry: RowGeometry
    tokens: torch.Tensor | None
    targets: torch.Tensor | None


def _last_line(error: BaseException) -> str:
    return str(error).strip().rsplit("\n", 1)[-1] or type(error).__name__


class MegatronEngine:
    """Megatron-Core behind `alia_ctx.train.trainer.Engine`. Needs an entered `Distributed`.

    Args:
        model: sizes of the model.
        rope: rotary embedding of this stage.
        context: tokens of a row, T.
        layout: parallel sizes; data parallelism takes what is left of the world.
        engine: precision, kernel, communication.
        optimizer: AdamW's constants; None builds no optimizer and no gradient buffers (evaluation).
        recompute: activation recomputation: none, selective (MLP), full.
        seed: of the random weights, where a stage starts from random.

    Raises LayoutError, before any memory is taken, where the layout fits neither model,
    row nor world, or where the attention kernel is not installed.
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
        recompute: Any = "none",
        seed: int = 1234,
    ) -> None:
        self.model, self.rope, self.context, self.layout, self.config = (
            model,
            rope,
            context,
            layout,
            engine,
        )
        world = dist.get_world_size()
        problems = layout.problems("layout", model, context, world)
        if problems:
            raise LayoutError(
                "\n".join(["the layout does not fit", *(f"  {p}" for p in problems)])
            )
        self.device = torch.device(torch.cuda.current_device())
        self._loss_chunk_tokens = engine.loss_chunk_tokens or (
            2048 if self.device.type == "cuda" else 256
        )
        kernel = resolve_kernel(engine.attention, self.device.type).name
        self._balance = (
            Balance.of(model) if engine.context_split == "balanced" else None
        )
        self._staging = Staging()
        self._start_groups(seed)
        options = ModelOptions(
            engine.precision,
            kernel,
            recompute,
            engine.deterministic,
            self.device.type == "cuda",
        )
        self._transformer = transformer_config(model, layout, options)
        module = build_model(model, self._transformer, context, options, self.groups)
        initialize(module, model, self._transformer, seed, self.groups)
        self._wrap(module, optimizer)

    # -- construction ------------------------------------------------------------------

    def _start_groups(self, seed: int) -> None:
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(
            self.layout.tp, self.layout.pp, context_parallel_size=self.layout.cp
        )
        tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        self.groups = ProcessGroupCollection.use_mpu_process_groups()
        self.is_first_stage = parallel_state.is_pipeline_first_stage()
        self.is_last_stage = parallel_state.is_pipeline_last_stage()

    def _wrap(self, module: torch.nn.Module, optimizer: OptimizerConfig | None) -> None:
        self._module: Any = module
        wrapped: Any = (
            module
            if self.config.precision == "fp32"
            else Float16Module(self._transformer, module)
        )
        self._optimizer: Any = None
        self._chunk: Any
        # whether an update's weights reach the other ranks only in the next forward
        self._gathers_late = False
        self._communication = 0.0
        if optimizer is None:
            self._chunk = wrapped.eval()
            return
        overlap = self._gathers_late = (
            self.config.overlap_communication and self.device.type == "cuda"
        )
        settings = DistributedDataParallelConfig(
            use_distributed_optimizer=True,
            overlap_grad_reduce=overlap,
            overlap_param_gather=overlap,
            grad_reduce_in_fp32=True,
        )
        self._chunk = DistributedDataParallel(self._transformer, settings, wrapped)
        self._optimizer = get_megatron_optimizer(
            self._optimizer_config(optimizer, overlap), [self._chunk]
        )
        for part in getattr(self._optimizer, "chained_optimizers", [self._optimizer]):
            # The moments exist from the start: memory runs out now or never, and update
            # 0 can be saved.
            part.init_state_fn(part.optimizer, part.config)
        self._transformer.finalize_model_grads_func = self._reduce_gradients
        self._transformer.grad_scale_func = self._optimizer.scale_loss
        if overlap:
            self._transformer.no_sync_func = self._chunk.no_sync
            self._transformer.param_sync_func = self._chunk.start_param_sync

    def _optimizer_config(
        self, optimizer: OptimizerConfig, overlap: bool
    ) -> MegatronOptimizerConfig:
        return MegatronOptimizerConfig(
            optimizer="adam",
            lr=0.0,
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            clip_grad=optimizer.clip_grad,
            bf16=self.config.precision == "bf16",
            params_dtype=DTYPES[self.config.precision],
            use_distributed_optimizer=True,
            overlap_param_gather=overlap,
        )

    # -- where this rank stands --------------------------------------------------------

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        return dist.get_world_size()

    @property
    def data_parallel_rank(self) -> int:
        return self.groups.dp.rank()

    @property
    def data_parallel_size(self) -> int:
        return self.groups.dp.size()

    @property
    def reports_losses(self) -> bool:
        """Whether this rank's losses count:

        the last pipeline stage, once per tensor-parallel group.
        """
        return self.is_last_stage and self.groups.tp.rank() == 0

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """This rank's parameters."""
        return self._module.parameters()

    # -- training ----------------------------------------------------------------------

    def train_update(
        self, rows: Sequence[PackedRow], learning_rate: float
    ) -> UpdateResult:
        """One optimizer update over `rows`, those of this data-parallel rank; ranks may
        bring unequal numbers.

        The loss is the sum over the update's predicted tokens of all ranks divided once
        by their number. Raises nothing on a NaN or infinite gradient: the update is
        then skipped and the result says so.
        """
        started = time.perf_counter()
        self._set_learning_rate(learning_rate)
        self._chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        losses = self._run(rows, forward_only=False)
        loss, predicted = self.reduce_losses(losses)
        computed = time.perf_counter()
        communication, self._communication = self._communication, 0.0
        norm = self._step_if_finite(loss)
        return UpdateResult(
            loss=loss,
            predicted_tokens=predicted,
            gradient_norm=norm,
            applied=math.isfinite(loss) and math.isfinite(norm),
            losses=tuple(losses),
            compute_seconds=computed - started - communication,
            communication_seconds=communication,
            step_seconds=time.perf_counter() - computed,
        )

    def row_losses(self, rows: Sequence[PackedRow]) -> tuple[RowLosses, ...]:
        """Per-token losses of `rows` without training, on the ranks that report losses
        (empty elsewhere).
        """
        self._chunk.eval()
        try:
            with torch.no_grad():
                return tuple(self._run(rows, forward_only=True))
        finally:
            if self._optimizer is not None:
                self._chunk.train()

    def logits(self, row: PackedRow) -> torch.Tensor | None:
        """fp32 logits [t, vocab] of this CP rank's tokens;

        for verification at small sizes, layouts with pp=1 only.
        """
        if self.layout.pp > 1:
            raise LayoutError(
                "logits are for verification on one pipeline stage; use pp=1"
            )
        batch = self._batch(row)
        with torch.no_grad():
            local = self._chunk(
                batch.tokens, None, None, packed_seq_params=batch.geometry
            )
            full = tensor_parallel.gather_from_tensor_model_parallel_region(
                local, group=self.groups.tp
            )
        return full[0, :, : self.model.vocab_size].float()

    def _reduce_gradients(self, *arguments: Any, **options: Any) -> None:
        """Upstream's reduction at the end of an update;

        what it takes is the communication that nothing hid.
        """
        torch.cuda.synchronize()
        started = time.perf_counter()
        finalize_model_grads(*arguments, **options)
        torch.cuda.synchronize()
        self._communication += time.perf_counter() - started

    def _step_if_finite(self, loss: float) -> float:
        """Step the optimizer unless loss or gradient norm (returned) are not finite: every
        rank decides alike.

        Upstream clips by a NaN norm into NaN weights, so the norm is looked at before
        its step is called.
        """
        if not math.isfinite(loss):
            return math.nan
        self._optimizer.prepare_grads()
        norm = float(self._optimizer.get_grad_norm())
        if math.isfinite(norm):
            self._optimizer.step()
        return norm

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def _run(self, rows: Sequence[PackedRow], *, forward_only: bool) -> list[RowLosses]:
        """Drive upstream's schedule over `rows`;

        a rank without rows runs one that predicts nothing.
        """
        rows = list(rows) or [PackedRow.from_documents([], self.context)]
        pending: _Pending = []
        get_forward_backward_func()(
            forward_step_func=self._forward_step(pending),
            data_iterator=(self._batch(row) for row in rows),
            model=[self._chunk],
            num_microbatches=len(rows),
            seq_length=self.context,
            micro_batch_size=1,
            forward_only=forward_only,
        )
        if not self.reports_losses:
            return []
        return [
            RowLosses(row, ranges, v.cpu().numpy(), t.cpu().numpy() >= 0)
            for row, ranges, v, t in pending
        ]

    def _forward_step(self, pending: _Pending) -> Any:
        def step(batches: Iterator[Batch], chunk: Any) -> tuple[torch.Tensor, Any]:
            batch = next(batches)
            with self._activation_storage():
                output = chunk(
                    batch.tokens,
                    None,
                    None,
                    labels=batch.targets,
                    packed_seq_params=batch.geometry,
                    output_processor=self._output_loss,
                    output_processor_context=(batch, pending),
                )
            return output, lambda loss: (loss, self._predicted(batch), {})

        return step

    def _activation_storage(self) -> contextlib.AbstractContextManager[Any]:
        """Where the forward keeps what the backward needs:

        on the device, or in host memory (slow, but it fits).
        """
        if not self.config.offload_activations:
            return contextlib.nullcontext()
        return offload_activations(self._module.parameters())

    def _predicted(self, batch: Batch) -> torch.Tensor:
        if batch.targets is None:  # upstream asks on the last pipeline stage alone
            raise LayoutError("only the last pipeline stage counts predicted tokens")
        return torch.sum(batch.targets >= 0).to(torch.int32)

    def _output_loss(
        self,
        *,
        hidden_states: torch.Tensor,
        output_layer: Any,
        output_weight: Any,
        context: Any,
        **ignored: Any,
    ) -> torch.Tensor:
        """Upstream calls this in place of head and loss, so that whole logits never exist."""
        batch, pending = context
        weight = output_layer.weight if output_weight is None else output_weight
        if self._gathers_late:
            # The output layer's own forward, which would wait for its weight, is never called.
            self._chunk.param_to_bucket_group[weight].finish_param_sync()
        loss, token_losses = vocab_parallel_loss(
            hidden_states,
            weight,
            batch.targets,
            tp_group=self.groups.tp,
            vocab_size=self.model.vocab_size,
            chunk_tokens=self._loss_chunk_tokens,
            sequence_parallel=self.layout.tp > 1,
        )
        pending.append(
            (batch.row, batch.geometry.rank.ranges, token_losses, batch.targets)
        )
        return loss

    def _batch(self, row: PackedRow) -> Batch:
        """This CP rank's part of a row: only its chunks are read and turned into tensors."""
        geometry = row_geometry(
            row.doc_offsets,
            self.context,
            self.layout.cp,
            self.groups.cp.rank(),
            rope=self.rope,
            head_dim=self.model.head_dim,
            device=self.device,
            balance=self._balance,
        )

        def local(read: Any) -> torch.Tensor:
            return torch.from_numpy(
                np.concatenate([read(a, b) for a, b in geometry.rank.ranges])
            ).to(self.device)

        return Batch(
            row=row,
            geometry=geometry,
            tokens=local(row.tokens)[None] if self.is_first_stage else None,
            targets=local(row.targets) if self.is_last_stage else None,
        )

    def reduce_losses(self, losses: Sequence[RowLosses]) -> tuple[float, int]:
        """Mean loss over the predicted tokens of all ranks' `losses`, and their number.

        Collective.
        """
        sums = [
            [part.values.sum(dtype=np.float64), part.predicted.sum()] for part in losses
        ]
        total, predicted = self.sum_over_ranks(
            np.array(sums or [[0.0, 0.0]], dtype=np.float64).sum(axis=0)
        )
        return float(total / max(predicted, 1)), int(predicted)

    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        """Sum of a float64 array over all ranks, on every rank."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(
            self.device
        )
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def gather_objects(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank; for small things."""
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        dist.barrier()

    def memory_bytes(self) -> int:
        """Peak memory of this rank: allocated on its GPU, or resident on the host."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    # -- weights and state on disk -----------------------------------------------------

    def begin_save(
        self, directory: Path, *, with_optimizer: bool = True
    ) -> BackgroundSave:
        """Start writing weights, and optimizer state where there is one, into a begun
        checkpoint. Collective.

        One save at a time: the memory that is written from is the same for all.
        """
        optimizer = (
            self._optimizer_part()
            if with_optimizer and self._optimizer is not None
            else None
        )
        if optimizer is None and self._gathers_late:
            # Each rank's own range of the weights is always current; whole weights are
            # so only once gathered.
            self._chunk.start_param_sync(force_sync=True)
        return BackgroundSave(
            owned_state(self._module.sharded_state_dict(), optimizer),
            directory,
            self._staging,
        )

    def _optimizer_part(self) -> Any:
        """Upstream's distributed optimizer itself, out of the chain of one that it comes in."""
        parts = getattr(self._optimizer, "chained_optimizers", [self._optimizer])
        if len(parts) != 1:
            raise NotImplementedError(
                "upstream split the optimizer, whose state would need names of its own"
            )
        return parts[0]

    def load(self, directory: Path, *, with_optimizer: bool) -> None:
        """Load the `state` directory of what `begin_save` or an import wrote, under any
        layout. Collective.

        Without the optimizer its state starts afresh from the loaded weights. Raises
        CheckpointError naming the directory where a tensor is missing, misshapen or
        unreadable.
        """
        problem = None
        try:
            with closed_unpickling(directory):
                loaded = dist_checkpointing.load(
                    {"model": self._module.sharded_state_dict()}, str(directory)
                )
            self._module.load_state_dict(loaded["model"], strict=False)
            if with_optimizer:
                self._load_optimizer(directory, loaded)
        except (
            Exception,
            CheckpointException,
        ) as error:  # many kinds for one cause; the latter is no Exception
            problem = _last_line(error)
        problems = [each for each in self.gather_objects(problem) if each]
        if problems:
            raise CheckpointError(
                f"{directory}: does not load into this model ({problems[0]}); "
                "check that the configuration's model is the checkpoint's"
            )
        if not with_optimizer and self._optimizer is not None:
            self._optimizer.reload_model_params()

    def _load_optimizer(self, directory: Path, common: dict[str, Any]) -> None:
        if "optimizer" not in common:
            raise CheckpointError("it holds no optimizer state")
        optimizer = self._optimizer_part()
        optimizer.load_state_dict({"optimizer": common["optimizer"]["optimizer"]})
        with open_state(directory) as reader:
            read_moments(
                owned_state(self._module.sharded_state_dict(), optimizer, copies=True),
                reader,
            )
