"""Rotary position embeddings as numbers: one table of types, with the fields that each
needs and the formula of its frequencies.

The formulas are those of Hugging Face's `modeling_rope_utils.py`, operation by operation,
so that in fp32 on torch they equal it to the bit. They take the array module and dtype
to compute in: rotation asks for torch in fp32, the planner for numpy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from alia_ctx.errors import ConfigError, Problem

_FP32 = np.finfo(np.float32)
_LEAST, _MOST = float(_FP32.tiny), float(_FP32.max)
LONGEST = 2**48  # tokens; products with it stay exact in fp64


@dataclass(frozen=True)
class Frequencies:
    """Where a formula computes: rotated pairs f = head_dim / 2, rows of `context` tokens,
    arrays of `arrays` (numpy or torch) in `dtype`.
    """

    head_dim: int
    context: int
    arrays: Any  # a module; numpy's and torch's stubs share no type
    dtype: Any

    def powers(self, theta: float) -> Any:
        """theta^(2i/head_dim) of pair i, [f].

        The exponent is rounded to the dtype before the power, as upstream does: another
        order changes last bits.
        """
        even_f = self.arrays.arange(0, self.head_dim, 2, dtype=self.dtype)
        return theta ** (even_f / self.head_dim)

    def pairs(self) -> Any:
        """The pairs' indices, [f]."""
        return self.arrays.arange(self.head_dim // 2, dtype=self.dtype)


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, in the field names of Hugging Face's `rope_parameters`.

    `theta` is the base. Which other fields a type needs is checked by `problems`; a
    field that the type does not use must stay unset, so that nobody believes it has an
    effect.
    """

    type: str
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
        definition = ROPE_TYPES[self.type]
        return definition.needs + definition.options

    def problems(
        self, key: str, context: int, head_dim: int | None = None
    ) -> list[Problem]:
        """Rules that this RoPE breaks for rows of `context` tokens, and what its
        frequencies come to for heads of `head_dim`, where that is known.

        `key` is its place in the config.
        """
        if self.type not in ROPE_TYPES:
            known = ", ".join(ROPE_TYPES)
            rule = "there is no such RoPE type"
            return [Problem(f"{key}.type", self.type, rule, f"use one of {known}")]
        problems = [
            Problem(
                f"{key}.{name}",
                value,
                "must be a finite number of fp32",
                "set a number",
            )
            for name, value in vars(self).items()
            if isinstance(value, float) and not abs(value) <= _MOST
        ]
        if problems:
            return problems
        if not self.theta > 1:
            rule = "the base must be above 1"
            problems.append(
                Problem(f"{key}.theta", self.theta, rule, "10000 is Llama's")
            )
        for name in ROPE_TYPES[self.type].needs:
            if getattr(self, name) is None:
                rule = f"RoPE type {self.type} needs it"
                problems.append(
                    Problem(f"{key}.{name}", None, rule, f"set {key}.{name}")
                )
        for name in sorted(OPTIONAL_FIELDS - set(self.used_fields())):
            if (value := getattr(self, name)) is not None:
                rule = f"RoPE type {self.type} ignores it"
                problems.append(Problem(f"{key}.{name}", value, rule, "remove it"))
        problems += self._out_of_range(key, context)
        if problems or head_dim is None:
            return problems
        return _frequency_problems(self, key, head_dim, context)

    def idle_fields(self) -> list[tuple[str, str, str]]:
        """(field, why, remedy) of those that are set and do nothing beside the others."""
        pair = ("mscale", "mscale_all_dim")
        if self.attention_factor is not None:
            why, remedy = "beside attention_factor", "leave one of them out"
        elif not (self.mscale and self.mscale_all_dim):
            why = "unless mscale and mscale_all_dim are both set, and not to 0"
            remedy = "set both, or leave it out"
        else:
            return []
        return [(n, why, remedy) for n in pair if getattr(self, n) is not None]

    @property
    def reach(self) -> int | None:
        """Tokens that factor x original length comes to, of a type that this bounds."""
        original = self.original_max_position_embeddings
        if original is None or not self.factor or not ROPE_TYPES[self.type].reaches:
            return None
        return int(original * self.factor)

    def _out_of_range(self, key: str, context: int) -> list[Problem]:
        problems = []
        if self.factor is not None and self.factor < 1:
            problems.append(
                Problem(
                    f"{key}.factor",
                    self.factor,
                    "must be at least 1",
                    "use context / original length",
                )
            )
        original = self.original_max_position_embeddings
        if original is not None and not 1 <= original <= LONGEST:
            problems.append(
                Problem(
                    f"{key}.original_max_position_embeddings",
                    original,
                    f"must be positive, and at most {LONGEST}",
                    "use the length that the base model was trained at",
                )
            )
        elif (reach := self.reach) is not None and reach < context:
            assert original is not None
            problems.append(
                Problem(
                    f"{key}.factor",
                    self.factor,
                    f"reaches {reach} = {original} x {self.factor:g} tokens, the "
                    f"context is {context}",
                    f"use a factor of {context / original:g} or more",
                )
            )
        for name in ("attention_factor", "beta_fast", "beta_slow"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                remedy = "leave it out, the default is the paper's"
                problems.append(
                    Problem(f"{key}.{name}", value, "must be above 0", remedy)
                )
        for name in ("mscale", "mscale_all_dim"):  # 0 is read as unset
            value = getattr(self, name)
            if value is not None and value < 0:
                rule, remedy = "must not be negative", "leave it out, or set 1"
                problems.append(Problem(f"{key}.{name}", value, rule, remedy))
        fast = 32.0 if self.beta_fast is None else self.beta_fast
        slow = 1.0 if self.beta_slow is None else self.beta_slow
        if not fast >= slow:
            problems.append(
                Problem(
                    f"{key}.beta_fast",
                    f"{fast:g}",
                    f"is below beta_slow={slow:g}: near pairs would be stretched and far "
                    "ones kept",
                    "YaRN uses 32 and 1",
                )
            )
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and not 0 < low < high:
            problems.append(
                Problem(
                    f"{key}.low_freq_factor",
                    low,
                    f"must be above 0 and below high_freq_factor={high:g}",
                    "Llama 3 and ALIA use 1 and 4",
                )
            )
        return problems

    def require(self, name: str) -> float:
        """The value of a field that the type needs; ConfigError where it is unset."""
        value = getattr(self, name)
        if value is None:
            raise ConfigError("", [Problem(f"rope.{name}", None, "is unset", "set it")])
        return float(value)


OPTIONAL_FIELDS = frozenset(RopeSpec.__dataclass_fields__) - {"type", "theta"}


@dataclass(frozen=True)
class RopeType:
    """One type: what it computes and from which fields.

    Args:
        formula: inverse frequencies in radians a token [f], and the factor on cos and sin.
        needs: fields of RopeSpec without which it is undefined.
        options: fields that it reads where they are set.
        reaches: whether factor x original length bounds the context.
        original_is_context: Hugging Face keeps the original length of this type in
            `max_position_embeddings` and not in `rope_parameters`.
        factor_is_ratio: Hugging Face takes an absent factor, and some of its versions
            any factor, as `max_position_embeddings` over the original length.
    """

    formula: Callable[[RopeSpec, Frequencies], tuple[Any, float]]
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    reaches: bool = False
    original_is_context: bool = False
    factor_is_ratio: bool = False


def inverse_frequencies(
    rope: RopeSpec, head_dim: int, context: int, arrays: Any, dtype: Any
) -> tuple[Any, float]:
    """Angular frequency of each rotated pair in radians a token [head_dim / 2], and the
    factor on cos and sin.

    `arrays` is the module `numpy` or `torch`, `dtype` one of its types. Only `dynamic`
    depends on `context`, the row length. Raises ConfigError where the type lacks a
    field, `head_dim` is odd, or a frequency is no number of fp32.
    """
    # whether it reaches the context is for whoever chose it
    problems = rope.problems("rope", context=1)
    problems = problems or _frequency_problems(rope, "rope", head_dim, context)
    if problems or head_dim % 2:
        raise ConfigError(
            f"RoPE cannot be built for head_dim={head_dim} (it must be even)", problems
        )
    formula = ROPE_TYPES[rope.type].formula
    return formula(rope, Frequencies(head_dim, context, arrays, dtype))


def _frequency_problems(
    rope: RopeSpec, key: str, head_dim: int, context: int
) -> list[Problem]:
    """Frequencies that training, in fp32, could not compute with: fields that are each in
    range can together come to zero, infinity or nothing at all.
    """
    if head_dim % 2:
        return []  # said of the model
    formula = ROPE_TYPES[rope.type].formula
    try:
        with np.errstate(all="ignore"):
            frequencies, scaling = formula(
                rope, Frequencies(head_dim, context, np, np.float32)
            )
    except (ArithmeticError, ValueError) as error:
        rule = f"cannot be computed for head_dim={head_dim}: {error}"
    else:
        values = {f"the frequency of pair {i}": v for i, v in enumerate(frequencies)}
        values["the factor on cos and sin"] = scaling
        wrong = {k: v for k, v in values.items() if not _LEAST <= float(v) <= _MOST}
        if not wrong:
            return []
        what, value = next(iter(wrong.items()))
        rule = f"{what} of {head_dim // 2} comes to {value:g} in fp32"
    fields = {k: v for k, v in vars(rope).items() if v is not None}
    told = ", ".join(f"{name} {value}" for name, value in fields.items())
    remedy = "use theta and factor of a published model, or RoPE type linear or yarn"
    return [Problem(key, told, rule, remedy)]


def _default(rope: RopeSpec, of: Frequencies) -> tuple[Any, float]:
    return 1.0 / of.powers(rope.theta), 1.0


def _linear(rope: RopeSpec, of: Frequencies) -> tuple[Any, float]:
    return 1.0 / of.powers(rope.theta) / rope.require("factor"), 1.0


def _dynamic(rope: RopeSpec, of: Frequencies) -> tuple[Any, float]:
    """NTK-aware scaling: the base grows with the length, the highest frequency stays."""
    original = int(rope.require("original_max_position_embeddings"))
    factor = rope.require("factor")
    if of.head_dim == 2:
        raise ValueError("the one pair of dynamic is never stretched")
    length = max(of.context, original)
    stretch = (factor * length / original) - (factor - 1)
    theta = rope.theta * stretch ** (of.head_dim / (of.head_dim - 2))
    return 1.0 / of.powers(theta), 1.0


def _llama3(rope: RopeSpec, of: Frequencies) -> tuple[Any, float]:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, those
    between blended.
    """
    factor = rope.require("factor")
    original = rope.require("original_max_position_embeddings")
    low, high = rope.require("low_freq_factor"), rope.require("high_freq_factor")
    frequencies = 1.0 / of.powers(rope.theta)
    wavelengths = 2 * math.pi / frequencies
    is_long, is_short = wavelengths > original / low, wavelengths < original / high
    share_kept = (original / wavelengths - low) / (high - low)
    blended = (1 - share_kept) * frequencies / factor + share_kept * frequencies
    where = of.arrays.where
    scaled = where(is_long, frequencies / factor, frequencies)
    return where(is_long | is_short, scaled, blended), 1.0


def _yarn(rope: RopeSpec, of: Frequencies) -> tuple[Any, float]:
    """YaRN (arXiv 2309.00071):

    a linear ramp over the pairs between kept and interpolated frequencies.
    """
    factor = rope.require("factor")
    original = rope.require("original_max_position_embeddings")

    def pair_that_turns(times: float) -> float:
        return (of.head_dim * math.log(original / (times * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low = pair_that_turns(rope.beta_fast or 32)
    high = pair_that_turns(rope.beta_slow or 1)
    if rope.truncate is None or rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, of.head_dim - 1)
    if low == high:
        high += 0.001
    share_kept = 1 - of.arrays.clip((of.pairs() - low) / (high - low), 0, 1)
    powers = of.powers(rope.theta)
    frequencies = 1.0 / (factor * powers) * (1 - share_kept) + 1.0 / powers * share_kept
    return frequencies, yarn_attention_factor(rope, factor)


def yarn_attention_factor(rope: RopeSpec, factor: float) -> float:
    """YaRN's factor on cos and sin where its pairs are stretched by `factor`."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return float(temperature(rope.mscale) / temperature(rope.mscale_all_dim))
    return temperature(1)


_ORIGINAL = "original_max_position_embeddings"
ROPE_TYPES: Mapping[str, RopeType] = MappingProxyType(
    {
        "default": RopeType(_default),
        "linear": RopeType(_linear, needs=("factor",)),
        "dynamic": RopeType(
            _dynamic, needs=("factor", _ORIGINAL), original_is_context=True
        ),
        "yarn": RopeType(
            _yarn,
            needs=("factor", _ORIGINAL),
            options=(
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ),
            reaches=True,
            factor_is_ratio=True,
        ),
        "llama3": RopeType(
            _llama3,
            needs=("factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"),
            reaches=True,
        ),
    }
)
