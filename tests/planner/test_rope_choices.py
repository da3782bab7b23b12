"""Choices of a RoPE as numbers, against brute force in fp64 with formulas of the papers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from alia_ctx.errors import ConfigError
from alia_ctx.planner import (
    RopeFigures,
    choice_table,
    draw_choices,
    rope_figures,
    standard_choices,
    with_configured,
)
from alia_ctx.spec.rope import RopeSpec

BASE, TRAINED = RopeSpec("default", 10_000.0), 128


def by_hand(
    name: str, head_dim: int, trained: int, context: int, theta: float
) -> np.ndarray:
    """Frequencies of the pairs as the papers write them, a pair at a time."""
    s, d = context / trained, head_dim
    out = []
    for i in range(d // 2):
        f = theta ** (-2 * i / d)
        wavelength = 2 * math.pi / f
        if name == "linear":
            f = f / s
        elif name == "ntk":
            f = (theta * s ** (d / (d - 2))) ** (-2 * i / d)
        elif name == "dynamic":  # Hugging Face: alpha = s * length / original - (s - 1)
            f = (theta * (s * s - (s - 1)) ** (d / (d - 2))) ** (-2 * i / d)
        elif name == "llama3":
            turns = trained / wavelength
            smooth = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
            f = (1 - smooth) * f / s + smooth * f
        out.append(f)
    return np.array(out)


@pytest.mark.parametrize("name", ["unchanged", "linear", "ntk", "dynamic", "llama3"])
@pytest.mark.parametrize(("head_dim", "context"), [(32, 1024), (32, 5120), (64, 2000)])
def test_figures_by_brute_force(name: str, head_dim: int, context: int) -> None:
    rope = standard_choices(BASE, head_dim, TRAINED, context)[name]
    found = rope_figures(name, rope, head_dim, context, BASE, TRAINED)
    f = by_hand(name, head_dim, TRAINED, context, 10_000.0)
    sums = [sum(math.cos(m * x) for x in f) for m in range(context)]
    first = next((m for m, total in enumerate(sums) if total < 0), None)
    assert found.first_negative == first
    assert found.pairs == head_dim // 2
    assert found.never_turn == sum(x * context < 2 * math.pi for x in f)
    before = by_hand("unchanged", head_dim, TRAINED, TRAINED, 10_000.0)
    beyond = [
        x * context / (y * TRAINED)
        for x, y in zip(f, before, strict=True)
        if y * TRAINED < 2 * math.pi and x * context > y * TRAINED * (1 + 1e-9)
    ]
    assert found.beyond_training == len(beyond)
    assert found.furthest == pytest.approx(max(beyond, default=1.0), rel=1e-12)
    assert found.longest_wavelength == pytest.approx(2 * math.pi / min(f), rel=1e-12)
    assert found.attention_factor == 1.0


def test_yarns_attention_factor() -> None:
    """0.1 ln s + 1 (arXiv 2309.00071, eq. 22); the slowest pair is stretched by all of s."""
    rope = standard_choices(BASE, 32, TRAINED, 5120)["yarn"]
    found = rope_figures("yarn", rope, 32, 5120, BASE, TRAINED)
    assert found.attention_factor == pytest.approx(0.1 * math.log(40) + 1, rel=1e-12)
    slowest = 2 * math.pi * 10_000 ** (30 / 32) * 40
    assert found.longest_wavelength == pytest.approx(slowest, rel=1e-12)


def test_theta_is_the_smallest_base_that_holds() -> None:
    """Of bases of two digits: it holds at every distance, the one before it does not."""
    theta = standard_choices(BASE, 32, TRAINED, 1024)["theta"].theta

    def holds(base: float) -> bool:
        f = base ** (-np.arange(0, 32, 2) / 32)
        return bool((np.cos(np.outer(np.arange(1024), f)).sum(axis=1) >= 0).all())

    step = 10.0 ** (math.floor(math.log10(theta)) - 1)
    assert holds(theta) and not holds(theta - step)


def test_nothing_to_stretch_is_the_base_alone() -> None:
    assert standard_choices(BASE, 32, 128, 128) == {"unchanged": BASE}
    assert standard_choices(BASE, 32, 4096, 128) == {"unchanged": BASE}


def test_the_configured_one_stands_once_and_first() -> None:
    choices = standard_choices(BASE, 32, TRAINED, 5120)
    found = with_configured(choices, dataclasses.replace(choices["llama3"]))
    assert next(iter(found)) == "configured" and "llama3" not in found
    other = RopeSpec("default", 7e5)
    assert set(with_configured(choices, other)) == {"configured", *choices}


def figures(context: int = 1024) -> list[RopeFigures]:
    choices = standard_choices(BASE, 32, TRAINED, context)
    return [rope_figures(k, r, 32, context, BASE, TRAINED) for k, r in choices.items()]


def test_json_and_table() -> None:
    found = figures()
    read = json.loads(json.dumps([one.to_json() for one in found], allow_nan=False))
    assert read[1]["rope"]["type"] == "llama3" and "beta_fast" not in read[1]["rope"]
    assert choice_table("t", found).row_count == len(found)


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plots(tmp_path: Path, suffix: str, begins: bytes) -> None:
    path = tmp_path / "new" / f"rope.{suffix}"
    draw_choices({"a": figures(), "b": figures(2048)}, 32, path)
    assert path.read_bytes().startswith(begins)


def test_another_kind_of_plot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"called \.png or \.svg"):
        draw_choices({"a": figures()}, 32, tmp_path / "rope.pdf")


def test_a_rope_that_breaks_a_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="factor"):
        rope_figures("x", RopeSpec("yarn", 1e4), 32, 1024, BASE, TRAINED)
