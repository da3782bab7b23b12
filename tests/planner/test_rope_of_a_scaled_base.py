"""Choices for a base that is scaled already, against frequencies by transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from alia_ctx.planner import left_out_choices, rope_figures, standard_choices
from alia_ctx.spec.rope import RopeSpec

HEAD_DIM, TRAINED, CONTEXT = 64, 1024, 2048
WAYS = {"unchanged", "llama3", "yarn", "ntk", "linear", "dynamic", "theta"}
LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL: dict[str, Any] = {"original_max_position_embeddings": 256}
BASES = {
    "default": RopeSpec("default", 10_000.0),
    "linear": RopeSpec("linear", 10_000.0, factor=4.0),
    "linear x1": RopeSpec("linear", 10_000.0, factor=1.0),
    "dynamic": RopeSpec("dynamic", 10_000.0, factor=4.0, **ORIGINAL),
    "llama3": RopeSpec("llama3", 10_000.0, factor=4.0, **ORIGINAL, **LLAMA3),
    "yarn": RopeSpec("yarn", 10_000.0, factor=4.0, **ORIGINAL),
    "yarn said": RopeSpec(
        "yarn", 1e4, factor=4.0, attention_factor=0.1 * math.log(4) + 1, **ORIGINAL
    ),
    "yarn other": RopeSpec("yarn", 1e4, factor=4.0, attention_factor=1.3, **ORIGINAL),
}


def upstream(rope: RopeSpec, context: int) -> tuple[np.ndarray, float]:
    """(frequencies of the pairs, factor on cos and sin) by transformers."""
    fields = {k: v for k, v in vars(rope).items() if v is not None}
    kind, theta = fields.pop("type"), fields.pop("theta")
    parameters = {"rope_type": kind, "rope_theta": theta, **fields}
    limit = context
    if kind == "dynamic":  # keeps the original length there
        limit = rope.original_max_position_embeddings or 0
    config = LlamaConfig(
        hidden_size=HEAD_DIM * 2,
        num_attention_heads=2,
        max_position_embeddings=limit,
        rope_parameters=parameters,
    )
    if kind == "default":
        f = theta ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        return f, 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=context)
    return frequencies.double().numpy(), float(factor)


@pytest.mark.parametrize("name", BASES)
def test_no_choice_raises_a_frequency_of_the_base(name: str) -> None:
    """None undoes the base's stretch, none stretches by more than twice."""
    base = BASES[name]
    before, _ = upstream(base, TRAINED)
    choices = standard_choices(base, HEAD_DIM, TRAINED, CONTEXT)
    left_out = left_out_choices(base, HEAD_DIM, TRAINED, CONTEXT)
    assert set(choices) | set(left_out) == WAYS and not set(choices) & set(left_out)
    assert all(reason for reason in left_out.values())
    for choice, rope in choices.items():
        ratio = upstream(rope, CONTEXT)[0] / before
        assert ratio.max() <= 1 + 1e-5, choice
        if choice in ("linear", "ntk", "llama3", "yarn"):
            # fp32 on one side, and its powers: 1e-5
            assert ratio.min() == pytest.approx(0.5, rel=1e-5), choice
        if choice == "linear":
            assert ratio == pytest.approx(np.full(HEAD_DIM // 2, 0.5), rel=1e-5)
        if choice == "ntk":
            steps = np.arange(0, HEAD_DIM, 2) / (HEAD_DIM - 2)
            assert ratio == pytest.approx(0.5**steps, rel=1e-5)
        if choice in ("llama3", "yarn"):
            assert ratio[0] == pytest.approx(1.0, rel=1e-5)
        rope_figures(choice, rope, HEAD_DIM, CONTEXT, base, TRAINED)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("default", WAYS),
        ("linear x1", WAYS),
        ("dynamic", WAYS - {"theta"}),  # its own, as it is there, is above the smallest
        ("linear", {"unchanged", "linear", "ntk"}),
        ("llama3", {"llama3"}),
        ("yarn", {"yarn"}),
        ("yarn said", {"yarn"}),
        ("yarn other", set()),
    ],
)
def test_which_ways_go_on_from_a_base(name: str, kept: set[str]) -> None:
    assert set(standard_choices(BASES[name], HEAD_DIM, TRAINED, CONTEXT)) == kept


def test_factors_multiply() -> None:
    def choice(base: str, way: str) -> RopeSpec:
        return standard_choices(BASES[base], HEAD_DIM, TRAINED, CONTEXT)[way]

    assert choice("linear", "linear") == RopeSpec("linear", 1e4, factor=8.0)
    # as ALIA's: factor 8 of 4,096 at 32,768, factor 40 of 4,096 at 163,840
    alia = RopeSpec("llama3", 1e4, 8.0, 4096, **LLAMA3)
    further = standard_choices(alia, 128, 32_768, 163_840)
    assert further == {"llama3": RopeSpec("llama3", 1e4, 40.0, 4096, **LLAMA3)}
    for base in ("yarn", "yarn said"):
        rope = choice(base, "yarn")
        assert rope == RopeSpec("yarn", 1e4, factor=8.0, **ORIGINAL)
        assert upstream(rope, CONTEXT)[1] == pytest.approx(0.1 * math.log(8) + 1)


def test_theta_is_above_the_bases_own() -> None:
    base = RopeSpec("default", 5e8)
    assert "theta" not in standard_choices(base, HEAD_DIM, TRAINED, CONTEXT)
    reason = left_out_choices(base, HEAD_DIM, TRAINED, CONTEXT)["theta"]
    assert "5e+08 is not below" in reason


def test_a_head_of_one_pair_has_the_choices_that_can_be_computed() -> None:
    choices = standard_choices(BASES["default"], 2, 128, 1024)
    assert {"linear", "llama3"} <= set(choices) and "ntk" not in choices
    assert {"ntk", "dynamic"} <= set(left_out_choices(BASES["default"], 2, 128, 1024))
