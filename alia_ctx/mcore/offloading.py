"""Where an engine keeps activations between forward and backward."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable
from typing import Any

import psutil
from megatron.core.models.gpt import GPTModel

from alia_ctx.errors import LayoutError
from alia_ctx.mcore.padding import TokenPadding
from alia_ctx.mcore.runtime import Ranks
from alia_ctx.nn.activation_offload import offload_activations
from alia_ctx.nn.input_offload import InputOffload, SideStream
from alia_ctx.nn.pinned_memory import PinnedBuffers

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

    LayoutError, on all ranks, where a host has no room for the inputs.
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
    check_hosts(ranks, nbytes * most_away(len(layers), rows))
    return InputOffload(
        layers,
        PinnedBuffers(nbytes, pinned=ranks.device.type == "cuda"),
        rows,
        SideStream(ranks.device),
    ).row


def most_away(layers: int, rows_in_flight: int) -> int:
    """Inputs that are on the host at a time. Of a row that is alone the last one stays."""
    return layers * rows_in_flight if rows_in_flight > 1 else max(0, layers - 1)


def check_hosts(ranks: Ranks, nbytes: int) -> None:
    """LayoutError, on all ranks, unless each host has the memory available that its ranks
    will lock, `nbytes` on this one. Collective.
    """
    here = socket.gethostname(), nbytes, psutil.virtual_memory().available
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
