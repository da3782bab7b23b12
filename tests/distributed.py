"""Run a function on several gloo processes, within a time-out, leaving none behind."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
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


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Call `fn(rank, *args)` on `world_size` fresh processes that share a gloo group; their results by rank.

    `fn` and `args` must be picklable, `fn` at the top of an importable module. Raises AssertionError with the
    traceback of the first rank that failed, or TimeoutError after `timeout` seconds; then all children are killed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        queue = context.SimpleQueue()
        children = [
            context.Process(target=_child, args=(fn, rank, world_size, folder, timeout, args, queue), daemon=True)
            for rank in range(world_size)
        ]
        try:
            for child in children:
                child.start()
            return _collect(children, queue, timeout)
        finally:
            for child in children:
                if child.is_alive():
                    child.kill()
                if child.pid is not None:
                    child.join()


def _collect(children: list[Any], queue: Any, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(children):
        while not queue.empty():
            rank, error, value = queue.get()
            if error is not None:
                raise AssertionError(f"rank {rank} failed:\n{error}")
            results[rank] = value
        lost = [r for r, c in enumerate(children) if r not in results and c.exitcode is not None]
        if lost and queue.empty():
            raise AssertionError(f"rank {lost[0]} ended with status {children[lost[0]].exitcode} and no result")
        if time.monotonic() > deadline:
            raise TimeoutError(f"ranks {sorted(set(range(len(children))) - set(results))} gave no result in {timeout} s")
        time.sleep(0.05)
    return [results[rank] for rank in sorted(results)]


def _child(
    fn: Callable[..., Any], rank: int, world_size: int, folder: str, timeout: float, args: Any, queue: Any
) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    try:
        dist.init_process_group(
            "gloo",
            init_method=(Path(folder) / "store").as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        value = fn(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, traceback.format_exc(), None))
        raise SystemExit(1) from None
    queue.put((rank, None, value))
