"""Whether the machines of a run are fit for it, looked at by all its ranks together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from alia_ctx.cluster.attendance import absent_rank
from alia_ctx.cluster.disk import Ranks, disk, nearest
from alia_ctx.cluster.findings import Finding, broken, good, listed, merged, weak
from alia_ctx.cluster.gpus import gpu_health
from alia_ctx.cluster.links import (
    Place,
    bandwidth,
    clocks,
    own_name,
    ports,
    stragglers,
)
from alia_ctx.cluster.software import Needs, software
from alia_ctx.config.run import EngineConfig, RunConfig
from alia_ctx.errors import AliaError
from alia_ctx.host_memory import total_memory
from alia_ctx.train.faults import RankName
from alia_ctx.train.rendezvous import Meeting, starting_ranks
from alia_ctx.workflow.chain import check_trained, run_directory
from alia_ctx.workflow.planning import checkpoints_gib

WAIT_SECONDS = 120.0  # for ranks that do not come; imports on a cold disk take a minute
_LOOKING = timedelta(minutes=10)  # between two answers of a rank, on a slow disk
_MEASURING_MINUTES = 2.0  # for one collective


def examine(
    run: RunConfig | None,
    place: Path,
    *,
    wait_seconds: float = WAIT_SECONDS,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """What every rank of this start finds, the same list on all. Collective.

    All ranks that come hand in what they find, over the store of MASTER_ADDR, those too
    that could not take part in training; those that do not are named.

    run: whose needs it is held against, if any. place: where its files go; looked at is
    the nearest directory that is there. wait_seconds: for ranks that do not come. tell:
    is called with each broken finding of this rank by itself, at once.
    """
    engine = run.engine if run is not None else EngineConfig()
    own = list(_own(needs_of(run)))
    for finding in own:
        if finding.verdict == "broken":
            tell(finding)
    try:
        ranks = starting_ranks(timedelta(seconds=wait_seconds))
        name = RankName.of_this_process(ranks.rank)
        word = {
            "place": (ranks.rank, name.host, name.gpu),
            "findings": [asdict(finding) for finding in own],
        }
        if isinstance(ranks, Meeting):
            came = ranks.gather_present(word, wait_seconds)
            ranks.patience = _LOOKING
        else:
            came = dict(enumerate(ranks.gather_objects(word)))
        if len(came) < ranks.world_size:
            return _without_some(ranks.world_size, came, wait_seconds)
        by_rank = [
            (Place(*there["place"]), _findings(there["findings"]))
            for there in came.values()
        ]
        return _together(run, engine, nearest(place), ranks, by_rank)
    except AliaError as error:
        remedy = "see that the first host's name leads to it, and its port is open"
        finding = broken("ranks", f"do not meet: {error}", remedy)
        tell(finding)
        return [*own, finding]


def needs_of(run: RunConfig | None, stages: Sequence[str] = ()) -> Needs:
    """What a run, or these of its stages, asks of the programs; without one the defaults."""
    if run is None:
        return Needs()
    engine = run.engine
    return Needs(
        *(engine.device, engine.attention, engine.layers, engine.fp8, engine.precision),
        engine.deterministic,
        run.model,
        tuple(run.stage(name).layout.tp for name in stages or run.stages),
    )


def _own(needs: Needs) -> Iterator[Finding]:
    """What this rank finds by itself; whatever is wrong with its GPU, it is a finding."""
    yield from software(needs)
    try:
        yield from gpu_health(int(os.environ.get("LOCAL_RANK", "0")))
    except RuntimeError as error:
        words = f"does not answer ({str(error).splitlines()[0]})"
        yield broken("gpu", words, "leave this node out and tell its administrators")


def _findings(documents: Iterable[Mapping[str, Any]]) -> list[Finding]:
    return [Finding(**document) for document in documents]


def _without_some(
    world_size: int, came: Mapping[int, Any], seconds: float
) -> list[Finding]:
    """What those find that came, and who did not."""
    hosts = {r: there["place"][1] for r, there in came.items()}
    missing = [r for r in range(world_size) if r not in came]
    named = listed([absent_rank(r, hosts, world_size) for r in missing], 8)
    remedy = "look at what they said (their own log), and at that host; or leave it out"
    words = f"{named}: not there within {seconds:g} s, {len(came)} of {world_size} are"
    absent = broken("ranks", words, remedy)
    return merged(
        [
            (str(Place(*there["place"])), [*_findings(there["findings"]), absent])
            for there in came.values()
        ]
    )


def _together(
    run: RunConfig | None,
    engine: EngineConfig,
    place: Path,
    ranks: Ranks,
    by_rank: Sequence[tuple[Place, list[Finding]]],
) -> list[Finding]:
    places = [there for there, _ in by_rank]
    findings = by_rank[ranks.rank][1]
    hosts = len({there.host for there in places})
    words = f"{ranks.world_size} on {hosts} host{'s' * (hosts > 1)}"
    findings += [_as_many(run, ranks.world_size, words), own_name(hosts)]
    if run is not None:
        findings += _memory(run)
    findings += [clocks(ranks), ports(ranks)]
    on_gpu = places[ranks.rank].device != "cpu"
    needed = sum(_to_be_written(run, stage) for stage in run.stages) if run else 0.0
    megabytes = 256 if on_gpu else 32
    findings += disk(ranks, place, hosts, megabytes=megabytes, needed_gib=needed)
    unfit = [there for there, found in by_rank if _cannot_take_part(found)]
    odd = [there for there in places if (there.device != "cpu") != on_gpu]
    if odd and not unfit:  # the same words on all ranks
        without = [str(there) for there in places if there.device == "cpu"]
        words = f"{listed(without)} sees no GPU, unlike the others"
        findings.append(broken("ranks", words, "ask for GPUs on all nodes (--gres)"))
    if not unfit and not odd:
        findings += _links(run, engine, places)
    elif unfit and ranks.world_size > 1:
        words = f"not measured without {listed(map(str, unfit))}"
        findings.append(weak("all-reduce", words, "mend what is broken there first"))
    gathered = ranks.gather_objects([asdict(finding) for finding in findings])
    return merged(
        [
            (str(there), _findings(found))
            for there, found in zip(places, gathered, strict=True)
        ]
    )


def _to_be_written(run: RunConfig, stage: str) -> float:
    """GiB that the checkpoints of a stage will still take: none of a finished one, and of
    others not what is on the disk already.
    """
    with suppress(AliaError):  # what is wrong with a stage is said where it is trained
        if check_trained(run, stage, reading=True):
            return 0.0
    files = run_directory(run).checkpoints(stage).glob("update-*/**/*")
    with suppress(OSError):  # as one that retention has just removed
        there = sum(file.stat().st_size for file in files if file.is_file()) / 2**30
        return max(0.0, checkpoints_gib(run, stage) - there)
    return checkpoints_gib(run, stage)


def _cannot_take_part(findings: Iterable[Finding]) -> bool:
    """Whether a rank could not be one of a process group, whose code imports triton."""
    parts = ("cuda", "gpu", "triton")
    return any(f.verdict == "broken" and f.name in parts for f in findings)


def _links(
    run: RunConfig | None, engine: EngineConfig, places: Sequence[Place]
) -> Iterator[Finding]:
    """What takes a process group: bandwidth, and who is slow. Collective."""
    from alia_ctx.mcore.runtime import Distributed

    minutes = min(engine.timeout_minutes, _MEASURING_MINUTES)
    try:
        with Distributed(replace(engine, timeout_minutes=minutes)):
            yield from bandwidth(places, run.cluster if run is not None else None)
            yield stragglers(places)
    # NCCL and gloo raise RuntimeError and its like for whatever befalls them.
    except (AliaError, RuntimeError) as error:
        words = f"the ranks cannot work together: {str(error).strip().splitlines()[0]}"
        remedy = (
            "look at NCCL_DEBUG=INFO; the right interface in NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME"
        )
        yield broken("all-reduce", words, remedy)


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
    host = total_memory() / 2**30
    planned = run.cluster.host_memory_gib
    words = f"{host:,.0f} GiB, planned with {planned:g}"
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
            yield _capability(run)


def _capability(run: RunConfig) -> Finding:
    """The GPU's compute capability against the one by which the run's settings are judged."""
    planned = run.cluster.capability
    there = float("{}.{}".format(*torch.cuda.get_device_capability()))
    words = f"compute capability {there:.1f}"
    if planned is None or planned == there:
        return good("gpu generation", words)
    words += f", planned with {planned:.1f}"
    return weak("gpu generation", words, "correct cluster.compute_capability")
