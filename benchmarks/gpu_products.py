"""Whose layers compute in a benchmark, and how in FP8: the rows that stand side by side."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Products:
    """Whose layers compute, and how in FP8."""

    layers: str = "auto"
    fp8: str = "off"

    @classmethod
    def of(cls, layers: list[str], fp8: list[str]) -> list[Products]:
        """Those that go together: only TransformerEngine's layers have FP8."""
        pairs = [cls(name, scaled) for name in layers for scaled in fp8]
        return [pair for pair in pairs if pair.layers != "local" or pair.fp8 == "off"]

    def __str__(self) -> str:
        return f"{self.layers}:{self.fp8}"


LOCAL = Products("local")
