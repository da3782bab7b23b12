"""Choices of a RoPE for a longer context, compared as numbers before anything is trained.

For each choice: how far it reaches by the heuristic of `rope_reach`; how many rotated
pairs never complete a turn within the context, so that training shows only a part of
their circle; how many are turned further than the base model ever saw; and its factor on
attention. float64, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alia_ctx.files import require_replaceable
from alia_ctx.planner.rope_reach import (
    first_negative_distance,
    inverse_frequencies,
    plain_bases,
)
from alia_ctx.spec import rope as spec
from alia_ctx.spec.rope import RopeSpec

if TYPE_CHECKING:
    from rich.table import Table

TURN = 2 * np.pi
_POINTS = 1200  # of a plotted curve
_ROUNDING = 1 + 1e-9  # what two orders of computing an angle may differ by


@dataclass(frozen=True)
class RopeFigures:
    """What a choice comes to over rows of `context` tokens.

    Args:
        first_negative: first distance at which sum_i cos(m * theta_i) < 0, searched up
            to the context; None where there is none.
        pairs: rotated pairs, head_dim / 2.
        never_turn: pairs that do not complete a turn within the context.
        beyond_training: pairs that had completed no turn within the base's context, and
            are turned further here than they were there: angles nobody was trained on.
        furthest: the largest of those angles over the one that the base saw; 1 where
            there is none.
        longest_wavelength: tokens of the slowest pair's turn.
        attention_factor: factor on cos and sin, so its square on attention's logits.
    """

    name: str
    rope: RopeSpec
    context: int
    first_negative: int | None
    pairs: int
    never_turn: int
    beyond_training: int
    furthest: float
    longest_wavelength: float
    attention_factor: float

    def to_json(self) -> dict[str, Any]:
        """In JSON's types; fields of the RoPE that its type does not use are left out."""
        rope = {k: v for k, v in vars(self.rope).items() if v is not None}
        return {**vars(self), "rope": rope}


def figures(
    name: str, rope: RopeSpec, head_dim: int, context: int, base: RopeSpec, trained: int
) -> RopeFigures:
    """The figures of `rope` over rows of `context` tokens, for a model that was trained
    with the RoPE `base` at `trained` tokens.

    ConfigError where the RoPE breaks a rule.
    """
    now_f = inverse_frequencies(rope, head_dim, context)
    then_f = inverse_frequencies(base, head_dim, trained)
    seen_f = then_f * trained
    further_f = (seen_f < TURN) & (now_f * context > seen_f * _ROUNDING)
    ratio_f = now_f * context / seen_f
    _, factor = spec.inverse_frequencies(rope, head_dim, context, np, np.float64)
    return RopeFigures(
        name=name,
        rope=rope,
        context=context,
        first_negative=first_negative_distance(now_f, context),
        pairs=len(now_f),
        never_turn=int(np.sum(now_f * context < TURN)),
        beyond_training=int(np.sum(further_f)),
        furthest=float(ratio_f[further_f].max(initial=1.0)),
        longest_wavelength=float(TURN / now_f.min()),
        attention_factor=float(factor),
    )


def standard_choices(
    base: RopeSpec, head_dim: int, trained: int, context: int
) -> dict[str, RopeSpec]:
    """The published ways from `trained` to `context` tokens, by name, for a base trained
    with the RoPE `base`: each changes the frequencies that the base has, its own scaling
    among them. Those for which `left_out_choices` has a reason are missing.

    unchanged: the base's. linear: arXiv 2306.15595. ntk: the base raised once, so that
    the slowest pair is stretched by the factor. theta: the smallest base that reaches by
    the heuristic of arXiv 2405.14591, where there is one above the base's. dynamic: NTK
    by the length of the row. yarn: arXiv 2309.00071. llama3: Llama 3.1's, with its
    factors 1 and 4.
    """
    considered = _considered(base, head_dim, trained, context)
    return {k: v for k, v in considered.items() if isinstance(v, RopeSpec)}


def left_out_choices(
    base: RopeSpec, head_dim: int, trained: int, context: int
) -> dict[str, str]:
    """Why `standard_choices` of these arguments lack the published ways that they lack."""
    considered = _considered(base, head_dim, trained, context)
    return {k: v for k, v in considered.items() if isinstance(v, str)}


def _considered(
    base: RopeSpec, head_dim: int, trained: int, context: int
) -> dict[str, RopeSpec | str]:
    """Each published way as a RoPE, or why there is none."""
    if context <= trained:  # nothing to stretch: all of them are the base's
        return {"unchanged": base}
    factor = context / trained
    theta = _plain_theta(base, head_dim, trained)
    if theta is None:
        choices = {"unchanged": base, **_of_scaled(base, head_dim, factor, context)}
    else:
        choices = {"unchanged": base, **_of_plain(theta, head_dim, trained, context)}
    for name, rope in choices.items():
        if isinstance(rope, RopeSpec):
            problems = rope.problems(name, context, head_dim)
            if problems:
                choices[name] = f"{problems[0].key} {problems[0].rule}"
    return choices


def _plain_theta(base: RopeSpec, head_dim: int, trained: int) -> float | None:
    """The theta without scaling that has the base's frequencies over rows of `trained`
    tokens; None where there is none.
    """
    factor = base.factor or 1.0
    if base.type == "dynamic":  # is NTK by the rows' length, which were all as long
        original = base.require("original_max_position_embeddings")
        stretch = factor * max(trained, original) / original - (factor - 1)
        return _raised(base.theta, stretch, head_dim)
    is_plain = base.type == "default" or (
        factor == 1 and base.attention_factor in (None, 1)
    )
    return base.theta if is_plain else None


def _raised(theta: float, factor: float, head_dim: int) -> float | None:
    """NTK-aware scaling; None for a single pair, which it would not stretch."""
    if head_dim <= 2:
        return None
    return float(theta * factor ** (head_dim / (head_dim - 2)))


def _of_plain(
    theta: float, head_dim: int, trained: int, context: int
) -> dict[str, RopeSpec | str]:
    factor = context / trained
    original: dict[str, Any] = {
        "factor": factor,
        "original_max_position_embeddings": trained,
    }
    choices: dict[str, RopeSpec | str] = {
        "llama3": RopeSpec(
            "llama3", theta, low_freq_factor=1.0, high_freq_factor=4.0, **original
        ),
        "yarn": RopeSpec("yarn", theta, **original),
        "ntk": "the one pair of the head is never stretched by raising theta",
        "linear": RopeSpec("linear", theta, factor=factor),
        "dynamic": RopeSpec("dynamic", theta, **original),
    }
    raised = _raised(theta, factor, head_dim)
    if raised is not None:
        choices["ntk"] = RopeSpec("default", raised)
    holding = [one for one in plain_bases(head_dim, context) if one is not None]
    above = [one for one in holding if one > theta]
    if above:
        choices["theta"] = RopeSpec("default", above[0])
    else:
        choices["theta"] = (
            f"the base's own theta {theta:g} is not below {holding[0]:g}, which reaches"
            if holding
            else f"no theta below 1e9 reaches {context:,} tokens by the heuristic"
        )
    return choices


def _of_scaled(
    base: RopeSpec, head_dim: int, factor: float, context: int
) -> dict[str, RopeSpec | str]:
    """Ways that go on from a base that is scaled already. Its own type's does: linear and
    the long wavelengths of llama3 and yarn are divided by the product of both factors,
    short ones are kept. No other formula starts from scaled frequencies.
    """
    own = base.require("factor")
    reason = (
        f"the base is {base.type} x{own:g} already, and the formula starts from plain "
        "frequencies; start from the model before that, or name a RoPE of your own "
        "with `ablate --choices FILE`"
    )
    names = ("llama3", "yarn", "ntk", "linear", "dynamic", "theta")
    choices: dict[str, RopeSpec | str] = dict.fromkeys(names, reason)
    if base.type == "linear":
        raised = _raised(base.theta, factor, head_dim)
        if raised is not None:  # each pair's frequency is the base's, stretched by NTK
            choices["ntk"] = replace(base, theta=raised)
    if base.attention_factor is not None and not _has_the_formulas_factor(base):
        choices["yarn"] = (
            f"the base's attention_factor {base.attention_factor:g} is not that of "
            "the formula, which would say what it becomes; name a RoPE of your own "
            "with `ablate --choices FILE`"
        )
    else:
        choices[base.type] = stretched_further(base, factor, context)
    return choices


def stretched_further(base: RopeSpec, factor: float, context: int) -> RopeSpec:
    """A RoPE with a factor, stretched `factor` times as far, and at least as far as its
    factor has to reach for rows of `context` tokens (`RopeSpec.problems`): Llama 3.1 is
    published with 131,072 tokens and a factor that reaches 65,536.

    YaRN's temperature follows from its factor, unless the base has one of its own.
    """
    original = base.original_max_position_embeddings
    further = base.require("factor") * factor
    if original is not None and spec.ROPE_TYPES[base.type].reaches:
        further = max(further, context / original)
    rope = replace(base, factor=further)
    if _has_the_formulas_factor(base):
        rope = replace(rope, attention_factor=None)
    return rope


def _has_the_formulas_factor(base: RopeSpec) -> bool:
    """Whether the base states the temperature that it would have without stating it."""
    formula = replace(base, attention_factor=None)
    return base.attention_factor is not None and math.isclose(
        spec.yarn_attention_factor(formula, base.require("factor")),
        base.attention_factor,
        rel_tol=1e-6,
    )


def choice_table(title: str, choices: Sequence[RopeFigures]) -> Table:
    """A line a choice: reach in tokens; pairs that never turn within the context; pairs
    turned beyond what the base saw, and by how much; the longest wavelength in tokens;
    the factor on cos and sin.
    """
    from rich.table import Table

    table = Table(title=title)
    table.add_column("choice")
    for heading in (
        "reach",
        "never turn",
        "untrained",
        "by up to",
        "slowest",
        "attention",
    ):
        table.add_column(heading, justify="right")
    for one in choices:
        reach = one.first_negative
        table.add_row(
            one.name,
            "all" if reach is None else f"{reach:,}",
            f"{one.never_turn} of {one.pairs}",
            f"{one.beyond_training} of {one.pairs}",
            f"x{one.furthest:.2f}" if one.beyond_training else "-",
            f"{one.longest_wavelength:,.0f}",
            f"{one.attention_factor:.4f}",
        )
    return table


def margins(
    rope: RopeSpec, head_dim: int, context: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(distances m, B(m) = sum_i cos(m * theta_i)) at up to `_POINTS` distances below the
    context, evenly spaced in their logarithm.
    """
    distances = np.unique(
        np.geomspace(1, max(2, context - 1), _POINTS).astype(np.int64)
    )
    angles = np.outer(distances, inverse_frequencies(rope, head_dim, context))
    return distances, np.cos(angles).sum(axis=1)


def require_drawable(path: Path) -> None:
    """ConfigError where a path is called like no picture, or is one that is not ours."""
    require_replaceable(path, "--plot", "a plot", (".png", ".svg"), b"atplotlib")


def draw_choices(
    stages: Mapping[str, Sequence[RopeFigures]], head_dim: int, path: Path
) -> None:
    """B(m) against m, a panel a stage, as PNG or SVG by the path's suffix; see
    `require_drawable`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    require_drawable(path)
    figure = Figure(figsize=(8, 3.4 * len(stages)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(stages), squeeze=False)[:, 0]
    for axes, (stage, choices) in zip(panels, stages.items(), strict=True):
        for one in choices:
            axes.plot(*margins(one.rope, head_dim, one.context), label=one.name, lw=1.2)
        axes.axhline(0, color="grey", lw=0.8)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(
            title=f"{stage}: {choices[0].context:,} tokens",
            xlabel="distance m (tokens)",
            ylabel="sum of cos(m theta)",
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format=path.suffix.lower()[1:], dpi=120)


def with_configured(
    choices: Mapping[str, RopeSpec], configured: RopeSpec
) -> dict[str, RopeSpec]:
    """`configured` first, and the others that are not the same."""
    others = {k: v for k, v in choices.items() if replace(v) != configured}
    return {"configured": configured, **others}
