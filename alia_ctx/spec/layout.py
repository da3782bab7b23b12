"""Parallel layouts as arithmetic: what divides, and which rank holds which chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alia_ctx.errors import LayoutError, Problem, Problems
from alia_ctx.spec.model import ModelSpec


@dataclass(frozen=True)
class Layout:
    """Tensor (`tp`), context (`cp`) and pipeline (`pp`) parallel sizes; data parallelism
    takes the rest.

    Sequence parallelism follows tensor parallelism: it is on wherever tp > 1, as it
    only saves memory.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1

    @property
    def model_ranks(self) -> int:
        """Ranks that one row occupies: tp * cp * pp."""
        return self.tp * self.cp * self.pp

    def data_parallel(self, world_size: int) -> int:
        """Rows trained at the same time on `world_size` ranks;

        LayoutError where the layout does not divide them.
        """
        if world_size % self.model_ranks:
            raise LayoutError(
                f"layout tp={self.tp} cp={self.cp} pp={self.pp} takes "
                f"{self.model_ranks} ranks a row, "
                f"which does not divide a world of {world_size}; start a multiple of "
                f"{self.model_ranks} ranks"
            )
        return world_size // self.model_ranks

    def problems(
        self, key: str, model: ModelSpec, context: int, world_size: int
    ) -> list[Problem]:
        """Rules that this layout breaks for `model`, rows of `context` tokens and
        `world_size` ranks.
        """
        problems = Problems()
        for name in ("tp", "cp", "pp"):
            size = getattr(self, name)
            at = f"{key}.{name}"
            problems.need(size >= 1, at, size, "must be at least 1", "1 turns it off")
        if problems:
            return problems
        # Remedies are sought where a rule is broken only: the planner asks this of
        # hundreds of layouts.
        self._tensor_problems(key, model, problems)
        # One rank has the whole row as it is: nothing has to be cut.
        if self.cp > 1 and context % (2 * self.cp):
            rule = f"{context} is not a multiple of 2*cp={2 * self.cp}"
            fitting = _near_cp(context, self.cp)
            problems.add(f"{key}.cp", self.cp, rule, f"{fitting} fit")
        elif self.tp > 1 and (context // self.cp) % self.tp:
            local = context // self.cp
            rule = (
                f"sequence parallelism cuts the {local} tokens of a CP rank in tp parts"
            )
            fitting = _near_divisors(math.gcd(local, _cuts(model)), self.tp)
            problems.add(f"{key}.tp", self.tp, rule, f"{fitting} fit")
        if model.num_hidden_layers % self.pp:
            rule = f"does not divide {model.num_hidden_layers} layers"
            fitting = _near_divisors(model.num_hidden_layers, self.pp)
            problems.add(f"{key}.pp", self.pp, rule, f"{fitting} fit")
        problems.need(
            world_size % self.model_ranks == 0,
            key,
            f"tp*cp*pp={self.model_ranks}",
            f"does not divide {world_size} ranks",
            f"start a multiple of {self.model_ranks} ranks (cluster.nodes, "
            "cluster.ranks_per_node, --nproc-per-node) or change the layout",
        )
        return problems

    def _tensor_problems(self, key: str, model: ModelSpec, problems: Problems) -> None:
        if self.tp > model.num_key_value_heads:
            rule = f"is above num_key_value_heads={model.num_key_value_heads}"
            fitting = _near_divisors(_cuts(model), self.tp)
            problems.add(f"{key}.tp", self.tp, rule, f"{fitting} fit")
            return
        for name in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
            size = getattr(model, name)
            if size % self.tp:
                rule = f"does not divide {name}={size}"
                fitting = _near_divisors(_cuts(model), self.tp)
                problems.add(f"{key}.tp", self.tp, rule, f"{fitting} fit")


def _cuts(model: ModelSpec) -> int:
    """What tp has to divide: heads and FFN at once."""
    heads = math.gcd(model.num_key_value_heads, model.num_attention_heads)
    return math.gcd(heads, model.intermediate_size)


def _near_divisors(number: int, size: int) -> str:
    divisors = (
        [d for d in range(1, number + 1) if number % d == 0]
        if number < 1 << 20
        else [1]
    )
    below = [d for d in divisors if d < size][-1:]
    above = [d for d in divisors if d > size][:1]
    return " or ".join(str(d) for d in below + above) or "none"


def _near_cp(context: int, cp: int) -> str:
    """Context-parallel sizes that cut a row of `context` tokens: 1 alone where it is odd."""
    return "1" if context % 2 else _near_divisors(context // 2, cp)


def zigzag_chunks(row_length: int, cp: int, rank: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of the row that CP rank `rank` holds, in row order.

    The row is cut in 2*cp equal chunks; rank r holds chunks r and 2*cp-1-r, so that the
    causal work is even (Llama 3, arXiv 2407.21783, section 3.3.2). With cp=1 the rank
    holds the whole row as one range.
    """
    if cp == 1:
        return ((0, row_length),)
    if row_length % (2 * cp):
        raise LayoutError(
            f"a row of {row_length} tokens cannot be cut in 2*cp={2 * cp} equal chunks; "
            f"cp={_near_cp(row_length, cp)} fit"
        )
    size = row_length // (2 * cp)
    mirror = 2 * cp - 1 - rank
    return ((rank * size, (rank + 1) * size), (mirror * size, (mirror + 1) * size))
