"""How the layers of a benchmark are computed: the rows that stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Products:
    """Whose layers compute, how in FP8, whether activations wait on the host, tokens of a
    chunk of the MLP (0 for a row at once), and chunks of tensor-parallel layers.
    """

    layers: str = "auto"
    fp8: str = "off"
    offload: str = "off"
    mlp_chunk: int = 0
    tp_chunks: int = 1

    @classmethod
    def of(
        cls,
        layers: list[str],
        fp8: list[str],
        offload: Sequence[str] = ("off",),
        mlp_chunks: Sequence[int] = (0,),
        tp_chunks: Sequence[int] = (1,),
    ) -> list[Products]:
        """Those that go together: only TransformerEngine's layers have FP8, and only
        Megatron-Core's chunks.
        """
        every = product(layers, fp8, offload, mlp_chunks, tp_chunks)
        return [p for p in (cls(*parts) for parts in every) if p._go_together]

    @property
    def _go_together(self) -> bool:
        if self.layers == "local":
            return self.fp8 == "off"
        return self.tp_chunks == 1

    def __str__(self) -> str:
        away = "" if self.offload == "off" else ":offload"
        chunk = f":{self.mlp_chunk}" if self.mlp_chunk else ""
        overlap = f":tp-chunks-{self.tp_chunks}" if self.tp_chunks > 1 else ""
        return f"{self.layers}:{self.fp8}{away}{chunk}{overlap}"


LOCAL = Products("local")
