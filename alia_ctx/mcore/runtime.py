"""The process group of a run, and Megatron-Core made ready for the device at hand."""

from __future__ import annotations

import logging
import os
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from alia_ctx.config.run import EngineConfig
from alia_ctx.errors import LayoutError
from alia_ctx.mcore import adam, host
from alia_ctx.train.rendezvous import rendezvous

# Loggers whose warnings are about upstream's own plans, on every start and every save.
_CHATTY = ("megatron", "torch.distributed.elastic", "DistributedDataParallel")


class Distributed:
    """The process group of the run, for as long as the context is entered; one that is
    there already is used.

    Under torchrun all of its ranks; without it, this process alone. NCCL on GPUs, gloo on hosts.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._owned = False
        self._rendezvous: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Distributed:
        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise LayoutError(
                "engine.device=cuda: this machine shows no CUDA device; use auto or cpu"
            )
        if self.config.device == "cpu" and torch.cuda.is_available():
            raise LayoutError(
                "engine.device=cpu: hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the host"
            )
        on_host = host.activate()
        adam.use_group_step_adam()
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        if not on_host:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            self._owned = True
            self._start("gloo" if on_host else "cpu:gloo,cuda:nccl")
        return self

    def _start(self, backend: str) -> None:
        timeout = timedelta(minutes=self.config.timeout_minutes)
        if "RANK" in os.environ:
            with rendezvous():
                dist.init_process_group(backend, timeout=timeout)
            return
        self._rendezvous = tempfile.TemporaryDirectory(prefix="alia-ctx-")
        store = f"file://{self._rendezvous.name}/store"
        dist.init_process_group(
            backend, init_method=store, rank=0, world_size=1, timeout=timeout
        )

    def __exit__(self, *exception: object) -> None:
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        if self._owned:
            dist.destroy_process_group()
        if self._rendezvous:
            self._rendezvous.cleanup()
