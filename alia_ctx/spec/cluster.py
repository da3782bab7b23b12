"""The machine that a run is placed on, and what the planner takes its GPUs and links for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alia_ctx.errors import Problem, Problems
from alia_ctx.spec.execution import Precision

# Of NVIDIA's data sheets, SXM cards: dense bf16 and fp32 in 10^12 FLOP/s -> (compute
# capability, name).
_DATA_SHEETS = {(989.0, 67.0): (9.0, "Hopper"), (312.0, 19.5): (8.0, "A100")}

# Of fp32 on the cores of a whole host; a GPU does more.
_FASTEST_HOST_TFLOPS = 10


@dataclass(frozen=True)
class ClusterSpec:
    """Nodes, their GPUs, and the planner's guesses: `cluster` in the configuration.

    The defaults are the GPU of MareNostrum 5 (64 GB Hopper, four a node, NDR200 each);
    `alia_ctx.spec.machines` has others. `efficiency` and `attention_efficiency` were
    fitted to published throughput (docs/planner.md), what follows is guessed: set it
    after the first run. None of it changes what is trained.

    Args:
        nodes: Nodes of a stage that does not say its own.
        ranks_per_node: GPUs of a node, each with one rank.
        memory_gib: Memory of a GPU in GiB.
        peak_tflops: Its dense bf16 peak on the data sheet, in 10^12 FLOP/s.
        peak_fp32_tflops: The same in fp32 without tensor cores, which is how torch multiplies
            where nobody allows TF32; not above `peak_tflops`.
        compute_capability: NVIDIA's number for its generation, as 8.9 or 9.0, by which what it
            can compute is judged (`alia_ctx.spec.compute_capability`); None is that of the
            H100 or the A100 where both peaks are theirs, else unknown (`capability`).
        efficiency: Share of the peak that products with weights reach, norms, sums and
            all else that a layer does beside attention included.
        attention_efficiency: Share of the peak that the attention kernel reaches,
            masked work not counted.
        memory_gb_per_s: 10^9 bytes/s of a GPU's own memory on the data sheet of the H100 SXM;
            none that we have is of the 64 GB card.
        overhead_gib: GiB that CUDA, NCCL and fragmentation hold beside the tensors.
        node_gb_per_s: 10^9 bytes/s per GPU and direction between GPUs of a node:
            two thirds of NVLink 4's 450.
        network_gb_per_s: The same between nodes: four fifths of NDR200's 25.
        key_value_share: Share of a row's keys and values that a context-parallel rank's
            queries see, its own included, with cp above 2. Zigzag chunks r and
            2*cp-1-r see 2*cp-r of 2*cp chunks; over the ranks that is 3/4 and 1/(4*cp).
        key_value_share_of_two: Share that it receives where cp is 2: of its four
            chunks rank 0 holds two and lacks two.
        host_memory_gib: Memory of a node's host in GiB.
        host_overhead_gib: GiB of it that a rank takes for Python, libraries and the
            pages of the text that it reads.
        host_gb_per_s: 10^9 bytes/s per GPU and direction between it and the host's
            memory: two thirds of PCIe 5's 64.
    """

    nodes: int = 1
    ranks_per_node: int = 1
    memory_gib: float = 64.0
    peak_tflops: float = 989.0
    peak_fp32_tflops: float = 67.0
    compute_capability: float | None = None
    efficiency: float = 0.52
    attention_efficiency: float = 0.43
    memory_gb_per_s: float = 3350.0
    overhead_gib: float = 5.0
    node_gb_per_s: float = 300.0
    network_gb_per_s: float = 20.0
    key_value_share: float = 0.75
    key_value_share_of_two: float = 0.5
    host_memory_gib: float = 512.0
    host_overhead_gib: float = 6.0
    host_gb_per_s: float = 40.0

    @property
    def is_of_gpus(self) -> bool:
        """Whether it has a compute capability, or a peak above that of any host's processors."""
        given = self.compute_capability is not None
        return given or self.peak_fp32_tflops > _FASTEST_HOST_TFLOPS

    @property
    def capability(self) -> float | None:
        """Its compute capability, as it is said or by its peaks; None where nobody knows."""
        if self.compute_capability is not None:
            return self.compute_capability
        sheet = _DATA_SHEETS.get((self.peak_tflops, self.peak_fp32_tflops))
        return None if sheet is None else sheet[0]

    def peak_flops(self, precision: Precision) -> float:
        """FLOP/s of a GPU that computes in `precision`. Where `peak_tflops` is that of a
        processor, fp32 is not faster.
        """
        if precision == "fp32":
            return min(self.peak_fp32_tflops, self.peak_tflops) * 1e12
        return self.peak_tflops * 1e12

    def problems(self, key: str = "cluster") -> list[Problem]:
        """Values that make no sense."""
        problems = Problems()
        for name, remedy in _POSITIVE.items():
            value = getattr(self, name)
            problems.need(value > 0, f"{key}.{name}", value, "must be above 0", remedy)
        for name, remedy in _SHARES.items():
            value = getattr(self, name)
            rule = "is a share, of 1 at most"
            problems.need(value <= 1, f"{key}.{name}", value, rule, remedy)
        for name, remedy in _NOT_NEGATIVE.items():
            value = getattr(self, name)
            at = f"{key}.{name}"
            problems.need(value >= 0, at, value, "must not be negative", remedy)
        return [*problems, *self._capability_problems(f"{key}.compute_capability")]

    def _capability_problems(self, at: str) -> list[Problem]:
        """A compute capability that is none, or not that of the card that has both peaks."""
        problems, given = Problems(), self.compute_capability
        if given is None:
            return problems
        rule = "is not MAJOR.MINOR of a GPU"
        is_one = 1 <= given < 100 and math.isclose(given, round(given, 1))
        if not problems.need(is_one, at, given, rule, "8.0 is the A100, 9.0 Hopper"):
            return problems
        sheet = _DATA_SHEETS.get((self.peak_tflops, self.peak_fp32_tflops))
        if sheet is not None:
            known, name = sheet
            rule = f"peaks of {self.peak_tflops:g} and {self.peak_fp32_tflops:g} are {name}'s"
            remedy = f"set {at}={known:.1f}, or correct the peaks"
            problems.need(given == known, at, given, rule, remedy)
        return problems


_SHARES = {
    "efficiency": "use 0.4 to 0.7",
    "attention_efficiency": "use 0.3 to 0.6",
    "key_value_share": "three quarters is the mean of causal rows",
    "key_value_share_of_two": "a half is what rank 0 of two lacks",
}
_NOT_NEGATIVE = {"overhead_gib": "use 3 to 6", "host_overhead_gib": "use 3 to 10"}
_POSITIVE = {
    "nodes": "1 is one machine",
    "ranks_per_node": "give the GPUs of a node",
    "memory_gib": "see the GPU's data sheet",
    "peak_tflops": "see the GPU's data sheet",
    "peak_fp32_tflops": "see the GPU's data sheet",
    "memory_gb_per_s": "see the GPU's data sheet",
    "node_gb_per_s": "give GB/s per GPU and direction",
    "network_gb_per_s": "give GB/s per GPU and direction",
    "host_memory_gib": "give the memory of a node",
    "host_gb_per_s": "give GB/s per GPU and direction",
    **_SHARES,
}
