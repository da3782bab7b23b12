"""The ranks among each other: names, clocks, bandwidth, and who computes more slowly."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from alia_ctx.cluster.disk import Ranks
from alia_ctx.cluster.findings import Finding, broken, good, listed, weak
from alia_ctx.spec.cluster import ClusterSpec

_SKEW_WEAK, _SKEW_BROKEN = 1.0, 300.0  # seconds; munge's credentials last 300
_REACH_SECONDS = 10.0
_SLOWER_GPU, _SLOWER_CPU = 1.15, 1.5  # times the median
_FAIR_SHARE = 0.5  # of what the configuration takes the links for


@dataclass(frozen=True)
class Place:
    """Where a rank is."""

    rank: int
    host: str
    device: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} ({self.device})"


def own_name(hosts: int) -> Finding:
    """Whether other hosts can find this one by its name."""
    host = socket.gethostname()
    try:
        address = socket.getaddrinfo(host, None, family=socket.AF_INET)[0][4][0]
    except OSError as error:
        remedy = (
            "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        )
        words = f"{host} has no address ({error.strerror or error})"
        return (
            weak("name", words, remedy) if hosts == 1 else broken("name", words, remedy)
        )
    if hosts > 1 and str(address).startswith("127."):
        remedy = (
            "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network's interface"
        )
        return weak("name", f"{host} is {address}, which others cannot reach", remedy)
    return good("name", f"{host} is {address}" if hosts == 1 else "has an address")


def clocks(ranks: Ranks) -> Finding:
    """How far apart the hosts' clocks are, and whose is off. Collective."""
    ranks.gather_objects(None)
    times: dict[str, float] = {}
    for host, now in ranks.gather_objects((socket.gethostname(), time.time())):
        times.setdefault(host, now)
    apart = max(times.values()) - min(times.values())
    words = f"{apart:.3f} s apart"
    if apart <= _SKEW_WEAK:
        return good("clocks", words)
    # Most are right; of two hosts nobody can tell which.
    order = sorted(times, key=times.__getitem__)
    middle = order[(len(order) - 1) // 2]
    off = {host: times[host] - times[middle] for host in order}
    named = [
        f"{host} is {abs(by):.1f} s {'ahead of' if by > 0 else 'behind'} {middle}"
        for host, by in sorted(off.items(), key=lambda entry: -abs(entry[1]))
        if abs(by) > _SKEW_WEAK
    ]
    words += f": {listed(named)}"
    remedy = "have the hosts follow a time server (chrony)"
    if apart > _SKEW_BROKEN:
        return broken("clocks", words, remedy)
    return weak("clocks", words, remedy)


def ports(ranks: Ranks) -> Finding:
    """Whether the hosts reach each other at ports that the kernel hands out, as the ranks
    will: each the next one, by its name. Collective.
    """
    host = socket.gethostname()
    with socket.create_server(("", 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        first: dict[str, tuple[str, int]] = {}
        for name, address, number in ranks.gather_objects((host, _address(), port)):
            first.setdefault(name, (address, number))
        hosts = [*first]
        following = hosts[(hosts.index(host) + 1) % len(hosts)]
        failure = _failure(*first[following]) if len(hosts) > 1 else None
        failures = ranks.gather_objects((host, following, failure))
    named = dict.fromkeys(
        f"{name} does not reach {other} ({why})" for name, other, why in failures if why
    )
    if named:
        remedy = (
            "open the ports of net.ipv4.ip_local_port_range between the nodes, or set "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network where they are"
        )
        return weak("ports", listed(named), remedy)
    address = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if len(hosts) > 1:
        words = "all reach {}:{}, and the next host at a port of its own".format(
            *address
        )
        return good("ports", words)
    return good("ports", "one host alone" if None in address else "all reach rank 0")


def _address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return socket.gethostname()


def _failure(address: str, port: int) -> str | None:
    try:
        socket.create_connection((address, port), timeout=_REACH_SECONDS).close()
    except OSError as error:
        return f"{address}:{port}: {error.strerror or error}"
    return None


def bandwidth(
    places: Sequence[Place], cluster: ClusterSpec | None
) -> Iterator[Finding]:
    """All-reduce over all ranks, and each rank's sending to the next. Collective."""
    world, device = dist.get_world_size(), _device()
    if world == 1:
        return
    on_gpu = device.type == "cuda"
    size = (256 if on_gpu else 4) << 20
    tensor = torch.ones(size // 4, device=device)
    seconds = _least(lambda: dist.all_reduce(tensor), 3)
    # Each rank sends and receives 2 (n-1)/n of the bytes (NCCL's tests: bus bandwidth).
    rate = 2 * (world - 1) / world * size / seconds / 1e9
    hosts = {place.host for place in places}
    planned = 0.0
    if on_gpu and cluster is not None:
        planned = cluster.node_gb_per_s if len(hosts) == 1 else cluster.network_gb_per_s
    yield _rate(
        "all-reduce", f"{rate:.2f} GB/s a rank over {world} ranks", rate, planned
    )
    yield from _ring(places, tensor, planned)


def _rate(name: str, words: str, rate: float, planned: float) -> Finding:
    if planned and rate < _FAIR_SHARE * planned:
        words += f", planned with {planned:g}"
        remedy = "look at NCCL_DEBUG=INFO for the transport; correct cluster.*_gb_per_s"
        return weak(name, words, remedy)
    return good(name, words)


def _ring(
    places: Sequence[Place], tensor: torch.Tensor, planned: float
) -> Iterator[Finding]:
    """Each rank sends to the next, all at the same time; the slow ones are named."""
    rank, world = dist.get_rank(), dist.get_world_size()
    received = torch.empty_like(tensor)

    def send() -> None:
        operations = [
            dist.P2POp(dist.isend, tensor, (rank + 1) % world),
            dist.P2POp(dist.irecv, received, (rank - 1) % world),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    rate = tensor.nbytes / _least(send, 3) / 1e9
    rates = _gather(rate)
    slowest = min(range(world), key=rates.__getitem__)
    median = sorted(rates)[world // 2]
    words = f"{median:.2f} GB/s from rank to rank"
    if rates[slowest] < _FAIR_SHARE * median:
        to = places[(slowest + 1) % world]
        slow = f"; {places[slowest]} and {to} only {rates[slowest]:.2f}"
        yield weak("point to point", words + slow, "look at the link between them")
    else:
        yield _rate("point to point", words, rates[slowest], planned)


def stragglers(places: Sequence[Place]) -> Finding:
    """The same product on every rank; those that take longer are named. Collective."""
    device = _device()
    on_gpu = device.type == "cuda"
    n, times = (8192, 20) if on_gpu else (512, 10)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(n, n, generator=generator).to(device, dtype)

    def multiply() -> None:
        for _ in range(times):
            a @ a

    seconds = _gather(_least(multiply, 3))
    median = sorted(seconds)[(len(seconds) - 1) // 2]
    tflops = 2 * n**3 * times / median / 1e12
    limit = _SLOWER_GPU if on_gpu else _SLOWER_CPU
    slow = [r for r, took in enumerate(seconds) if took > limit * median]
    words = f"{tflops:,.2f} TFLOP/s of a product of {n:,}"
    if not slow:
        return good("straggler", f"{words}, all ranks alike")
    named = ", ".join(f"{places[r]} {seconds[r] / median:.2f} times" for r in slow[:8])
    return weak("straggler", f"{words}; slower: {named}", "leave these hosts out")


def _least(action: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls, the first not counted; all ranks begin each at
    the same time.
    """
    times = []
    for _ in range(repeats + 1):
        dist.barrier()
        _synchronize()
        started = time.perf_counter()
        action()
        _synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device() -> torch.device:
    name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _gather(value: float) -> list[float]:
    gathered: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
