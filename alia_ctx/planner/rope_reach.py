"""How far a rotary embedding reaches, by a published heuristic: numpy in float64, no torch.

For random queries and keys whose similar pairs are to score higher than others, the
expected margin at distance m is proportional to B(m) = sum_i cos(m * theta_i); past the
first m with B(m) < 0 the model cannot be expected to tell similar from random (Men et
al., arXiv 2405.14591, section 4). A heuristic, so an ablation has the last word.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alia_ctx.errors import ConfigError
from alia_ctx.spec import rope as spec
from alia_ctx.spec.rope import RopeSpec

_BLOCK = 512


@dataclass(frozen=True)
class RopeReach:
    """`first_negative` is the first distance in tokens at which B(m) < 0, None if there
    is none inside `context`.
    """

    context: int
    first_negative: int | None

    @property
    def holds(self) -> bool:
        return self.first_negative is None


@lru_cache(maxsize=64)
def rope_reach(rope: RopeSpec, head_dim: int, context: int) -> RopeReach:
    """The reach of `rope` over rows of `context` tokens;

    ConfigError where the RoPE breaks a rule.
    """
    return RopeReach(
        context,
        first_negative_distance(inverse_frequencies(rope, head_dim, context), context),
    )


def first_negative_distance(inv_freq_f: NDArray[np.float64], limit: int) -> int | None:
    """The first m in [0, limit) with sum_i cos(m * inv_freq_i) < 0; None where there is none.

    With m = a + b, the sums of 512 distances are one product: cos(m t) = cos(a t) cos(b
    t) - sin(a t) sin(b t).
    """
    offsets_fb = np.outer(inv_freq_f, np.arange(_BLOCK))
    cos_fb, sin_fb = np.cos(offsets_fb), np.sin(offsets_fb)
    for first in range(0, limit, _BLOCK * _BLOCK):
        starts_a = np.arange(first, min(limit, first + _BLOCK * _BLOCK), _BLOCK)
        angles_af = np.outer(starts_a, inv_freq_f)
        margin_m = (np.cos(angles_af) @ cos_fb - np.sin(angles_af) @ sin_fb).ravel()[
            : limit - first
        ]
        negative = np.flatnonzero(margin_m < 0)
        if len(negative):
            return first + int(negative[0])
    return None


@lru_cache(maxsize=64)
def plain_bases(head_dim: int, context: int) -> tuple[float | None, float | None]:
    """(the smallest base, the base from which all larger ones do) with B(m) >= 0 at
    every m < context.

    Among bases of two digits from 1.0e3 to 9.9e8, for RoPE without scaling; None where
    there is none. The two differ
    since the bases that hold form islands: at 32,768 and head_dim 128, 6.3e5 holds,
    6.4e5 does not, all from 1.9e6 do.
    """
    bases = [digits * 10.0**power for power in range(2, 8) for digits in range(10, 100)]
    held = [_holds(base, head_dim, context) for base in bases]
    smallest = next(
        (base for base, holds in zip(bases, held, strict=True) if holds), None
    )
    failing = [index for index, holds in enumerate(held) if not holds]
    first_safe = failing[-1] + 1 if failing else 0
    return smallest, bases[first_safe] if first_safe < len(bases) else None


def _holds(theta: float, head_dim: int, context: int) -> bool:
    plain = RopeSpec("default", theta)
    frequencies_f = inverse_frequencies(plain, head_dim, context)
    return first_negative_distance(frequencies_f, context) is None


def inverse_frequencies(
    rope: RopeSpec, head_dim: int, context: int
) -> NDArray[np.float64]:
    """Radians per token of each of the head_dim/2 rotated pairs, float64.

    The model trains with the same formulas in fp32 (`alia_ctx.nn.rotary`).
    ConfigError where the RoPE breaks a rule for rows of `context` tokens.
    """
    problems = rope.problems("rope", context)
    if problems:
        raise ConfigError("the RoPE cannot be planned with", problems)
    frequencies_f, _ = spec.inverse_frequencies(rope, head_dim, context, np, np.float64)
    return np.asarray(frequencies_f)
