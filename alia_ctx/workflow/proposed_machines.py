"""Machines that a proposed run is tried on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from alia_ctx.config.named_machine import require_known
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.host_memory import total_memory
from alia_ctx.planner.memory import GIB
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.machines import MACHINES

HOST = "this machine's processor"
MOST_GPUS = 1024
_MACHINE = "h100-80"  # where nobody says


def machines_in_turn(
    gpus: int | None, machine: str | None
) -> Iterator[tuple[int, str, ClusterSpec]]:
    """What a run is tried on in turn, (GPUs, name, cluster): what was asked for or is here,
    then ever more GPUs.
    """
    name = machine or _MACHINE
    require_known(name)
    if gpus is not None and gpus < 0:
        rule, remedy = "must be 0 or above", "0 is the processor"
        raise ConfigError("", [Problem("--gpus", gpus, rule, remedy)])
    if gpus == 0 and machine is not None:
        rule = f"is the processor of this machine, and not --on {machine}"
        raise ConfigError("", [Problem("--gpus", gpus, rule, "give one of them")])
    wanted = gpus
    if gpus is None and machine is None:
        wanted = gpus_here()
    if wanted == 0:
        yield 0, HOST, _host()
        if gpus == 0:
            return
    elif wanted:
        yield wanted, name, _cluster(name, wanted)
    size = MACHINES[name].ranks_per_node
    for doubling in range(MOST_GPUS.bit_length()):
        count = 1 << doubling
        if count > (wanted or 0) and (count <= size or count % size == 0):
            yield count, name, _cluster(name, count)


def _cluster(machine: str, gpus: int) -> ClusterSpec:
    spec = MACHINES[machine]
    ranks = min(gpus, spec.ranks_per_node)
    if gpus % ranks:
        rule = f"are no whole nodes of {machine}, which have {ranks} each"
        raise ConfigError("", [Problem("--gpus", gpus, rule, "give a multiple")])
    return dataclasses.replace(spec, nodes=gpus // ranks, ranks_per_node=ranks)


def _host() -> ClusterSpec:
    """One rank on this machine's processor, with all memory that its job may take."""
    memory = float(total_memory() // GIB)
    return dataclasses.replace(
        MACHINES["laptop"],
        ranks_per_node=1,
        memory_gib=memory,
        host_memory_gib=memory,
        overhead_gib=1.0,
        host_overhead_gib=0.0,
    )


def gpus_here() -> int:
    """GPUs of this machine."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
