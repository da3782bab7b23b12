"""The ranks of a run: its process group, Megatron-Core's groups in it, and Megatron-Core
made ready for the device at hand.
"""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed.checkpoint.api import CheckpointException

from alia_ctx.config.run import EngineConfig
from alia_ctx.errors import CheckpointError, LayoutError
from alia_ctx.mcore import adam, host
from alia_ctx.mcore.quiet import quiet_upstream
from alia_ctx.nn.determinism import deterministic_algorithms
from alia_ctx.spec.layout import Layout
from alia_ctx.train.rendezvous import World, meeting, rendezvous


class Distributed:
    """The process group of the run, for as long as the context is entered; one that is
    there already is used. Upstream's start-up talk is silenced for as long.

    Under torchrun all of its ranks; without it, this process alone. NCCL on GPUs, gloo on hosts.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> Distributed:
        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise LayoutError(
                "engine.device=cuda: this machine shows no CUDA device; use auto or cpu"
            )
        if self.config.device == "cpu" and torch.cuda.is_available():
            raise LayoutError(
                "engine.device=cpu: hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the host"
            )
        with contextlib.ExitStack() as entered:
            entered.enter_context(quiet_upstream())
            if self.config.deterministic:
                entered.enter_context(deterministic_algorithms())
            on_host = host.activate()
            adam.use_group_step_adam()
            if not on_host:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            if not dist.is_initialized():
                self._start("gloo" if on_host else "cpu:gloo,cuda:nccl", entered)
            entered.callback(end_model_parallel)
            self._entered = entered.pop_all()
        return self

    def _start(self, backend: str, entered: contextlib.ExitStack) -> None:
        timeout = timedelta(minutes=self.config.timeout_minutes)
        if "RANK" in os.environ:
            place = meeting()
            with rendezvous():
                dist.init_process_group(
                    backend,
                    store=place.store,
                    rank=place.rank,
                    world_size=place.world_size,
                    timeout=timeout,
                )
        else:
            folder = entered.enter_context(
                tempfile.TemporaryDirectory(prefix="alia-ctx-")
            )
            dist.init_process_group(
                backend,
                init_method=(Path(folder) / "store").as_uri(),
                rank=0,
                world_size=1,
                timeout=timeout,
            )
        entered.callback(_end_process_group)

    def __exit__(self, *exception: object) -> None:
        self._entered.close()


class Ranks(World):
    """Where this process stands among the ranks of `layout`, and talk among them all.

    Upstream's process groups are those of the engine built last: it keeps one set in the
    process, and those before are ended. Seeds upstream's random states. Collective.

    Args:
        layout: parallel sizes.
        seed: of upstream's random states.
        timeout_minutes: that a collective of one of its groups may wait; upstream's are
            half an hour, whatever that of the process group is.
        tensor_parallel_first: on a GPU collectives of tensor parallelism are given
            processors before a product that is ready at the same time, and as others come
            free; else they may begin where it ends.
    """

    def __init__(
        self,
        layout: Layout,
        seed: int,
        timeout_minutes: float = 20.0,
        *,
        tensor_parallel_first: bool = False,
    ) -> None:
        self.device = torch.device(torch.cuda.current_device())
        first = tensor_parallel_first and self.device.type == "cuda"
        end_model_parallel()
        parallel_state.initialize_model_parallel(
            layout.tp,
            layout.pp,
            context_parallel_size=layout.cp,
            distributed_timeout_minutes=timeout_minutes,
            high_priority_stream_groups=["tp"] if first else None,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
        self.groups = ProcessGroupCollection.use_mpu_process_groups()
        self.is_first_pp_rank = self.groups.pp.rank() == 0
        self.is_last_pp_rank = self.groups.pp.rank() == layout.pp - 1

    @property
    def data_parallel_rank(self) -> int:
        return self.groups.dp.rank()

    @property
    def data_parallel_size(self) -> int:
        return self.groups.dp.size()

    @property
    def reports_losses(self) -> bool:
        """Whether this rank's losses count:

        the last pipeline rank, once per tensor-parallel group.
        """
        return self.is_last_pp_rank and self.groups.tp.rank() == 0

    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        """Sum of a float64 array over all ranks, on every rank."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(
            self.device
        )
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def barrier(self) -> None:
        dist.barrier()

    def memory_bytes(self) -> int:
        """Peak memory of this rank: allocated on its GPU, or resident on the host."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @contextlib.contextmanager
    def loading(self, directory: Path) -> Iterator[None]:
        """What any rank meets while it loads from `directory` within it, all raise at its
        end as a CheckpointError, so that none waits for another in what comes next.
        Collective.
        """
        problem = None
        try:
            yield
        except (
            Exception,
            CheckpointException,
        ) as error:  # many kinds for one cause; the latter is no Exception
            problem = _last_line(error)
        problems = [text for text in self.gather_objects(problem) if text]
        if problems:
            raise CheckpointError(
                f"{directory}: does not load into this model ({problems[0]}); "
                "check that the configuration's model is the checkpoint's"
            )


def _end_process_group() -> None:
    """Where it is there still: ranks that lost each other have ended it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end_model_parallel() -> None:
    if not dist.is_initialized():  # the groups have ended with it
        return
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()


def _last_line(error: BaseException) -> str:
    return str(error).strip().rsplit("\n", 1)[-1] or type(error).__name__
