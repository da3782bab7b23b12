"""Where an engine keeps activations between forward and backward."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable
from typing import Any

from megatron.core.models.gpt import GPTModel

from alia_ctx.errors import LayoutError
from alia_ctx.host_memory import available_memory
from alia_ctx.mcore.padding import TokenPadding
from alia_ctx.mcore.runtime import Ranks
from alia_ctx.nn.activation_offload import offload_activations
from alia_ctx.nn.input_offload import InputOffload, SideStream
from alia_ctx.nn.pinned_memory import PinnedBuffers
from alia_ctx.progress import meter, say

ForwardContext = Callable[[], contextlib.AbstractContextManager[Any]]


def saves_inputs_alone(module: GPTModel) -> bool:
    """Whether the backward finds nothing but inputs of layers, and computes the rest again."""
    return bool(module.config.recompute_granularity == "full")


def offloading(
    module: GPTModel, context: int, padding: TokenPadding, ranks: Ranks
) -> ForwardContext:
    """What a forward of `module` enters so that activations of rows of at most `context`
    tokens wait in host memory: inputs of layers beside the computing, or, without full
    recomputation, all that is saved, in its order. Collective.

    Host memory for the inputs is allocated and locked here, which takes seconds and is
    said. LayoutError, on all ranks, where a host has no room for them.
    """
    if not saves_inputs_alone(module):
        return functools.partial(offload_activations, tuple(module.parameters()))
    groups, config = ranks.groups, module.config
    tokens = padding.padded(context // groups.cp.size()) // groups.tp.size()
    nbytes = tokens * config.hidden_size * config.params_dtype.itemsize
    rows = groups.pp.size() - groups.pp.rank()
    # Upstream keeps what came from the pipeline rank before for as long as the backward
    # is out (`input_tensors` in megatron/core/pipeline_parallel/schedules.py).
    layers = [*module.decoder.layers][0 if ranks.is_first_pp_rank else 1 :]
    count = most_away(len(layers), rows)
    check_hosts(ranks, nbytes * count)
    buffers = PinnedBuffers(nbytes, pinned=ranks.device.type == "cuda")
    _allocate(buffers, count, ranks)
    return InputOffload(layers, buffers, rows, SideStream(ranks.device)).row


def _allocate(buffers: PinnedBuffers, count: int, ranks: Ranks) -> None:
    """All of them now: a rank that found no memory, or took a minute to lock it, in the midst
    of an update would leave the others in a collective. LayoutError on all ranks. Collective.
    """
    gib, shown = buffers.nbytes / 2**30, ranks.rank == 0 and buffers.pinned
    if shown and count:
        say(
            f"page-locking host memory for inputs of layers: {count} x {gib:.2f} GiB here"
        )
    problem = None
    with meter("page-locking", count, "buffers", shown=shown and count > 0) as locked:
        try:
            buffers.allocate(count, locked.update)
        except LayoutError as error:
            problem = str(error)
    for host, text in ranks.gather_objects((socket.gethostname(), problem)):
        if text is not None:
            raise LayoutError(f"{text} ({host})")


def most_away(layers: int, rows_in_flight: int) -> int:
    """Inputs that are on the host at a time. Of a row that is alone the last one stays."""
    return layers * rows_in_flight if rows_in_flight > 1 else max(0, layers - 1)


def check_hosts(ranks: Ranks, nbytes: int) -> None:
    """LayoutError, on all ranks, unless each host has the memory available that its ranks
    will lock, `nbytes` on this one. Collective.
    """
    here = socket.gethostname(), nbytes, available_memory()
    asked: dict[str, int] = {}
    available: dict[str, int] = {}
    for host, wanted, free in ranks.gather_objects(here):
        asked[host] = asked.get(host, 0) + wanted
        available[host] = min(free, available.get(host, free))
    for host, wanted in asked.items():
        if wanted > available[host]:
            raise LayoutError(
                f"engine.offload_activations: inputs of layers need {wanted / 2**30:,.1f} GiB "
                f"of host memory on {host}, where {available[host] / 2**30:,.1f} GiB are "
                "available; switch it off, cut rows over more ranks (cp, tp), or take hosts "
                "with more memory"
            )
