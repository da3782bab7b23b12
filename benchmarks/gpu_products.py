"""How the layers of a benchmark are computed: the rows that stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Products:
    """Whose layers compute, how in FP8, and whether activations wait on the host."""

    layers: str = "auto"
    fp8: str = "off"
    offload: str = "off"

    @classmethod
    def of(
        cls, layers: list[str], fp8: list[str], offload: Sequence[str] = ("off",)
    ) -> list[Products]:
        """Those that go together: only TransformerEngine's layers have FP8."""
        all_of_them = [cls(a, b, c) for a in layers for b in fp8 for c in offload]
        return [p for p in all_of_them if p.layers != "local" or p.fp8 == "off"]

    def __str__(self) -> str:
        away = "" if self.offload == "off" else ":offload"
        return f"{self.layers}:{self.fp8}{away}"


LOCAL = Products("local")
