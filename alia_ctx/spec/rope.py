"""Rotary position embeddings as numbers: types, their fields, and the rules that they break."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alia_ctx.errors import Problem

RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3"]


_ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ),
}


_YARN_OPTIONS = (
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
)


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, in the field names of Hugging Face's `rope_parameters`.

    `theta` is the base. Which other fields a type needs is checked by `problems`; a
    field that the type does not use must stay unset, so that nobody believes it has an
    effect.
    """

    type: RopeType
    theta: float
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    def used_fields(self) -> tuple[str, ...]:
        """Names of the optional fields that this type reads."""
        return _ROPE_FIELDS[self.type] + (_YARN_OPTIONS if self.type == "yarn" else ())

    def problems(self, key: str, context: int) -> list[Problem]:
        """Rules that this RoPE breaks for rows of `context` tokens;

        `key` is its place in the config.
        """
        found = []
        if not self.theta > 1:
            found.append(
                Problem(
                    f"{key}.theta",
                    self.theta,
                    "the base must be above 1",
                    "10000 is Llama's",
                )
            )
        for name in _ROPE_FIELDS[self.type]:
            if getattr(self, name) is None:
                found.append(
                    Problem(
                        f"{key}.{name}",
                        None,
                        f"RoPE type {self.type} needs it",
                        f"set {key}.{name}",
                    )
                )
        found += self._surplus(key)
        found += self._out_of_range(key, context)
        return found

    def _surplus(self, key: str) -> list[Problem]:
        optional = (
            set(self.__dataclass_fields__) - {"type", "theta"} - set(self.used_fields())
        )
        return [
            Problem(
                f"{key}.{name}",
                getattr(self, name),
                f"RoPE type {self.type} ignores it",
                "remove it",
            )
            for name in sorted(optional)
            if getattr(self, name) is not None
        ]

    def _out_of_range(self, key: str, context: int) -> list[Problem]:
        found = []
        if self.factor is not None and self.factor < 1:
            found.append(
                Problem(
                    f"{key}.factor",
                    self.factor,
                    "must be at least 1",
                    "use context / original length",
                )
            )
        original = self.original_max_position_embeddings
        if original is not None and original < 1:
            found.append(
                Problem(
                    f"{key}.original_max_position_embeddings",
                    original,
                    "must be positive",
                    "use the length that the base model was trained at",
                )
            )
        elif original is not None and self.factor and self.type in ("yarn", "llama3"):
            reach = int(original * self.factor)
            if reach < context:
                found.append(
                    Problem(
                        f"{key}.factor",
                        self.factor,
                        f"reaches {reach} = {original} x {self.factor:g} tokens, the "
                        f"context is {context}",
                        f"use a factor of {context / original:g} or more",
                    )
                )
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and not 0 < low < high:
            found.append(
                Problem(
                    f"{key}.low_freq_factor",
                    low,
                    f"must be above 0 and below high_freq_factor={high:g}",
                    "Llama 3 and ALIA use 1 and 4",
                )
            )
        return found
