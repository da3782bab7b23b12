"""What tensor-parallel layers in chunks send, counted as they send it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from alia_ctx.mcore import chunked_linear


class ChunkMessages:
    """Stands for `torch.distributed` in the module of the chunked layers, from now on.

    counts: messages on this rank, by "forward gather", "forward scatter", "backward gather"
        and "backward scatter".
    longest: tokens of the longest of each, of one rank.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.longest: dict[str, int] = {}
        vars(chunked_linear)["dist"] = self

    def all_gather_into_tensor(self, out: Any, own: Any, **how: Any) -> Any:
        self._note("gather", own)
        return dist.all_gather_into_tensor(out, own, **how)

    def all_gather(self, out: Any, own: Any, **how: Any) -> Any:
        self._note("gather", own)
        return dist.all_gather(out, own, **how)

    def reduce_scatter_tensor(self, own: Any, everyone: Any, **how: Any) -> Any:
        self._note("scatter", own)
        return dist.reduce_scatter_tensor(own, everyone, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def _note(self, kind: str, own: torch.Tensor) -> None:
        # Below 0 where no backward is under way on this thread.
        backward = torch._C._current_graph_task_id() >= 0  # type: ignore[attr-defined]
        name = f"{'backward' if backward else 'forward'} {kind}"
        self.counts[name] += 1
        self.longest[name] = max(self.longest.get(name, 0), len(own))

    def report(self, passes: int) -> dict[str, list[float]]:
        """[messages a layer's pass, tokens of the longest] by name; `passes` of a row through
        a layer, forward and backward.
        """
        return {
            name: [count / passes, self.longest[name]]
            for name, count in sorted(self.counts.items())
        }


def expected(chunks: int, longest: int) -> dict[str, list[float]]:
    """A report where all layers are in chunks: of four linear layers two gather and two
    scatter in the forward, and the latter gather in the backward. What the former gather and
    scatter in the backward is upstream's, each at once beside a product.
    """
    names = ("backward gather", "forward gather", "forward scatter")
    return {name: [2 * chunks, longest] for name in names}
