"""Whether the machines of a run are fit for it, looked at by all its ranks together."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from alia_ctx.cluster.disk import disk, nearest
from alia_ctx.cluster.findings import Finding, broken, good, merged, weak
from alia_ctx.cluster.gpus import gpu_health
from alia_ctx.cluster.links import Place, bandwidth, clocks, own_name, stragglers
from alia_ctx.cluster.software import software
from alia_ctx.config.run import EngineConfig, RunConfig
from alia_ctx.errors import AliaError, LayoutError
from alia_ctx.train.faults import RankName
from alia_ctx.train.rendezvous import World
from alia_ctx.workflow.planning import checkpoints_gib


def examine(run: RunConfig | None, place: Path) -> list[Finding]:
    """What every rank of this start finds, the same list on all. Collective.

    run: whose needs it is held against, if any. place: where its files go; looked at is
    the nearest directory that is there.
    """
    from alia_ctx.mcore.runtime import Distributed

    engine = run.engine if run is not None else EngineConfig()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own = [*software(engine.device), *gpu_health(local)]
    if torch.cuda.is_available() and local >= torch.cuda.device_count():
        return own  # which says so; there is no GPU to meet the others with
    try:
        with Distributed(engine):
            return _together(run, nearest(place), own)
    except LayoutError as error:  # of the device, or that of another rank: no meeting
        if not any(finding.verdict == "broken" for finding in own):
            own.append(broken("ranks", f"do not start: {error}", "see above"))
        return own
    except AliaError as error:
        remedy = "see that the first host's name leads to it, and its port is open"
        return [*own, broken("ranks", f"do not meet: {error}", remedy)]


def _together(run: RunConfig | None, place: Path, own: list[Finding]) -> list[Finding]:
    world = World()
    name = RankName.of_this_process(world.rank)
    places = [
        Place(*fields)
        for fields in world.gather_objects((world.rank, name.host, name.gpu))
    ]
    hosts = len({place.host for place in places})
    ranks = world.world_size
    words = f"{ranks} on {hosts} host{'s' * (hosts > 1)}"
    findings = [*own, _as_many(run, ranks, words), own_name(hosts)]
    if run is not None:
        findings += _memory(run)
    findings.append(clocks(world, dist.barrier))
    megabytes = 256 if name.gpu != "cpu" else 32
    needed = sum(checkpoints_gib(run, stage) for stage in run.stages) if run else 0.0
    findings += disk(world, place, hosts, megabytes=megabytes, needed_gib=needed)
    findings += bandwidth(places, run.cluster if run is not None else None)
    findings.append(stragglers(places))
    by_rank = world.gather_objects([str(places[world.rank]), findings])
    return merged([(who, found) for who, found in by_rank])


def _as_many(run: RunConfig | None, ranks: int, words: str) -> Finding:
    """Whether so many ranks are there as a stage is planned for."""
    if run is None:
        return good("ranks", words)
    planned = {run.world_size(stage) for stage in run.stages.values()}
    if ranks in planned or ranks == 1:
        return good("ranks", words)
    wanted = ", ".join(map(str, sorted(planned)))
    remedy = f"start {wanted}, or correct cluster.nodes and ranks_per_node"
    return weak("ranks", f"{words}; the stages are planned for {wanted}", remedy)


def _memory(run: RunConfig) -> Iterator[Finding]:
    """Memory of host and GPU against what the planner takes them for."""
    import psutil

    host = psutil.virtual_memory().total / 2**30
    planned = run.cluster.host_memory_gib
    words = f"{host:,.0f} GiB on {socket.gethostname()}, planned with {planned:g}"
    if host < 0.9 * planned:
        yield weak("host memory", words, "correct cluster.host_memory_gib")
    else:
        yield good("host memory", words)
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
            words = f"{free:.1f} of {total:.1f} GiB free, planned with"
            words += f" {run.cluster.memory_gib:g}"
            if total < run.cluster.memory_gib - 1:
                yield weak("gpu room", words, "correct cluster.memory_gib")
            elif free < 0.9 * total:
                remedy = "another process holds the GPU: see `nvidia-smi`"
                yield weak("gpu room", words, remedy)
            else:
                yield good("gpu room", words)
