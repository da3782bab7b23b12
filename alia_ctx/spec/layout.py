"""Parallel layouts as arithmetic: which rank holds which chunk, and which rows go where."""

from __future__ import annotations

from dataclasses import dataclass

from alia_ctx.errors import LayoutError, Problem
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
        sizes = {"tp": self.tp, "cp": self.cp, "pp": self.pp}
        found = [
            Problem(f"{key}.{name}", size, "must be at least 1", "1 turns it off")
            for name, size in sizes.items()
            if size < 1
        ]
        if found:
            return found
        found += self._tensor_problems(key, model)
        if context % (2 * self.cp):
            found.append(
                Problem(
                    f"{key}.cp",
                    self.cp,
                    f"{context} is not a multiple of 2*cp={2 * self.cp}",
                    f"{_near_divisors(context // 2, self.cp)} fit",
                )
            )
        elif self.tp > 1 and (context // self.cp) % self.tp:
            found.append(
                Problem(
                    f"{key}.tp",
                    self.tp,
                    f"sequence parallelism cuts the {context // self.cp} tokens of a "
                    "CP rank in tp parts",
                    f"{_near_divisors(context // self.cp, self.tp)} fit",
                )
            )
        if model.num_hidden_layers % self.pp:
            found.append(
                Problem(
                    f"{key}.pp",
                    self.pp,
                    f"does not divide {model.num_hidden_layers} layers",
                    f"{_near_divisors(model.num_hidden_layers, self.pp)} fit",
                )
            )
        if world_size % self.model_ranks:
            found.append(
                Problem(
                    key,
                    f"tp*cp*pp={self.model_ranks}",
                    f"does not divide {world_size} ranks",
                    "change the layout or the number of nodes",
                )
            )
        return found

    def _tensor_problems(self, key: str, model: ModelSpec) -> list[Problem]:
        if self.tp > model.num_key_value_heads:
            return [
                Problem(
                    f"{key}.tp",
                    self.tp,
                    f"is above num_key_value_heads={model.num_key_value_heads}",
                    f"{_near_divisors(model.num_key_value_heads, self.tp)} fit",
                )
            ]
        checked = {
            "num_key_value_heads": model.num_key_value_heads,
            "num_attention_heads": model.num_attention_heads,
            "intermediate_size": model.intermediate_size,
        }
        return [
            Problem(
                f"{key}.tp",
                self.tp,
                f"does not divide {name}={size}",
                f"{_near_divisors(size, self.tp)} fit",
            )
            for name, size in checked.items()
            if size % self.tp
        ]


def _near_divisors(number: int, wanted: int) -> str:
    divisors = (
        [d for d in range(1, number + 1) if number % d == 0]
        if number < 1 << 20
        else [1]
    )
    below = [d for d in divisors if d < wanted][-1:]
    above = [d for d in divisors if d > wanted][:1]
    return " or ".join(str(d) for d in below + above) or "none"


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
            f"cp={_near_divisors(row_length // 2, cp)} fit"
        )
    size = row_length // (2 * cp)
    mirror = 2 * cp - 1 - rank
    return ((rank * size, (rank + 1) * size), (mirror * size, (mirror + 1) * size))
