"""How the layers of a benchmark are computed: the rows that stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
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
        Megatron-Core's have chunks, of the MLP and of tensor-parallel layers. ValueError
        where a value goes with none of the others.
        """
        asked = (layers, fp8, offload, mlp_chunks, tp_chunks)
        together = [p for p in (cls(*parts) for parts in product(*asked)) if p._fits]
        alone = [
            (place, value)
            for place in (1, 4, 3, 0, 2)  # first what asks something of the others
            for value in asked[place]
            if value not in {astuple(p)[place] for p in together}
        ]
        if alone:
            defaults = astuple(cls())
            place, value = min(alone, key=lambda pair: pair[1] == defaults[pair[0]])
            raise ValueError(
                f"{cls._words(place, value)} goes with none of --layers "
                f"{' '.join(layers)}, --fp8 {' '.join(fp8)}: FP8 is of te (or auto), "
                "chunks of the MLP and of tensor-parallel layers of local"
            )
        return together

    @staticmethod
    def _words(place: int, value: object) -> str:
        names = ("--layers", "--fp8", "--offload", "--mlp-chunk", "--tp-chunks")
        return f"{names[place]} {value}"

    @property
    def _fits(self) -> bool:
        if self.layers == "local":
            return self.fp8 == "off"
        return self.tp_chunks == 1 and not self.mlp_chunk

    def __str__(self) -> str:
        away = "" if self.offload == "off" else ":offload"
        chunk = f":{self.mlp_chunk}" if self.mlp_chunk else ""
        overlap = f":tp-chunks-{self.tp_chunks}" if self.tp_chunks > 1 else ""
        return f"{self.layers}:{self.fp8}{away}{chunk}{overlap}"


LOCAL = Products("local")
