"""Run a function on several gloo processes, within a time-out, leaving none behind.

The processes are forked from a server that has imported once what most of them need, so a
group of four starts in half a second; importing Megatron in each would cost a minute of
two cores. The server has one thread and has initialised nothing, and it ends
with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_PRELOADED = [
    "torch.distributed",
    "torch._dynamo",  # torch imports it where an optimizer is first made
    "transformers.models.llama.modeling_llama",
    "alia_ctx.cli.run_commands",
    "alia_ctx.mcore.attention",
    "alia_ctx.mcore.engine",
    "alia_ctx.workflow.evaluation",
    "alia_ctx.workflow.training",
    "tests.distributed",
]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ATTEMPTS = 3
_FORMING = "while forming"  # stands for the result of a rank that has not called `fn`


def run_distributed(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 240
) -> list[Any]:
    """Call `fn(rank, *args)` on `world_size` fresh processes that share a gloo group;
    their results by rank.

    `fn` (at the top of an importable module), `args` and the results must be picklable.
    Raises AssertionError with the traceback of the first rank that failed, or
    TimeoutError after `timeout` seconds. Either way, and if this process dies, the
    children and what they started are killed.

    A group that cannot be formed is tried twice again: Gloo's mesh of connections is
    sometimes refused on a busy machine, before a line of `fn` has run.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _run_once(fn, world_size, args, timeout)
        except _NotFormedError as error:
            if attempt == _ATTEMPTS - 1:
                raise
            warnings.warn(f"the group is formed again: {error}", stacklevel=2)
    raise AssertionError("unreachable")


class _NotFormedError(AssertionError):
    """The processes did not find each other; `fn` was not called on this rank."""


def forkserver() -> Any:
    """The context of multiprocessing whose server has imported what most processes need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _run_once(
    fn: Callable[..., Any], world_size: int, args: tuple[Any, ...], timeout: float
) -> list[Any]:
    context = forkserver()
    with tempfile.TemporaryDirectory() as folder:
        queue = context.SimpleQueue()
        children = [
            context.Process(
                target=_child, args=(fn, rank, world_size, folder, timeout, args, queue)
            )
            for rank in range(world_size)
        ]
        try:
            for child in children:
                child.start()
            return _collect(children, queue, timeout)
        finally:
            for child in children:
                kill(child)


def _collect(children: list[Any], queue: Any, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(children):
        while not queue.empty():
            rank, error, value = queue.get()
            if error is not None:
                kind = _NotFormedError if value == _FORMING else AssertionError
                raise kind(f"rank {rank} failed:\n{error}")
            results[rank] = value
        lost = [
            r
            for r, c in enumerate(children)
            if r not in results and c.exitcode is not None
        ]
        if lost and queue.empty():
            raise AssertionError(
                f"rank {lost[0]} ended with status {children[lost[0]].exitcode} and no result"
            )
        if time.monotonic() > deadline:
            silent = sorted(set(range(len(children))) - set(results))
            raise TimeoutError(f"ranks {silent} gave no result in {timeout} s")
        time.sleep(0.02)
    for child in children:
        child.join(timeout=30)
    return [results[rank] for rank in sorted(results)]


def begin_child() -> None:
    """First in a process of the server: a group of its own, gone with the server, one core."""
    os.setpgrp()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(1)


def kill(child: Any) -> None:
    """End a process and its group, if there is one yet."""
    if child.pid is None:
        return
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # it is gone, or has not made its group yet
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.join()


def _child(
    fn: Callable[..., Any],
    rank: int,
    world_size: int,
    folder: str,
    timeout: float,
    args: Any,
    queue: Any,
) -> None:
    begin_child()
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    failed_while: str | None = _FORMING
    try:
        dist.init_process_group(
            "gloo",
            init_method=(Path(folder) / "store").as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        dist.barrier()  # once a rank calls `fn`, no other can be forming
        failed_while = None
        value = fn(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, traceback.format_exc(), failed_while))
        raise SystemExit(1) from None
    queue.put((rank, None, value))
