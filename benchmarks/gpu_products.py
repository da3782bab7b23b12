"""How the layers of a benchmark are computed: the rows that stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Products:
    """Whose layers compute, how in FP8, whether activations wait on the host, and tokens of
    a chunk of the MLP; 0 for a row at once.
    """

    layers: str = "auto"
    fp8: str = "off"
    offload: str = "off"
    mlp_chunk: int = 0

    @classmethod
    def of(
        cls,
        layers: list[str],
        fp8: list[str],
        offload: Sequence[str] = ("off",),
        mlp_chunks: Sequence[int] = (0,),
    ) -> list[Products]:
        """Those that go together: only TransformerEngine's layers have FP8."""
        every = [cls(*parts) for parts in product(layers, fp8, offload, mlp_chunks)]
        return [p for p in every if p.layers != "local" or p.fp8 == "off"]

    def __str__(self) -> str:
        away = "" if self.offload == "off" else ":offload"
        chunk = f":{self.mlp_chunk}" if self.mlp_chunk else ""
        return f"{self.layers}:{self.fp8}{away}{chunk}"


LOCAL = Products("local")
