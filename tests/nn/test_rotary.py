"""RoPE against transformers:

bit-equal frequencies, angles and rotations, at every position that a row can have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from alia_ctx.errors import ConfigError
from alia_ctx.nn.rotary import cos_sin, inverse_frequencies, rotate
from alia_ctx.spec.rope import ROPE_TYPES, RopeSpec

ALIA_32K = RopeSpec("llama3", 1e4, 8.0, 4096, low_freq_factor=1.0, high_freq_factor=4.0)
ALIA_160K = dataclasses.replace(ALIA_32K, factor=40.0)
LONGEST = 163_840

SPECS = {
    "default": RopeSpec("default", 1e4),
    "default-large-theta": RopeSpec("default", 8.8e6),
    "default-odd-theta": RopeSpec("default", 123_456.789),
    "linear": RopeSpec("linear", 1e4, 40.0),
    "linear-fraction": RopeSpec("linear", 5e5, 2.5),
    "dynamic": RopeSpec("dynamic", 1e4, 2.0, 4096),
    "dynamic-large": RopeSpec("dynamic", 5e5, 40.0, 4096),
    "yarn": RopeSpec("yarn", 1e4, 40.0, 4096),
    "yarn-attention-factor": RopeSpec("yarn", 1e6, 40.0, 4096, attention_factor=1.25),
    "yarn-mscale": RopeSpec("yarn", 1e4, 40.0, 4096, mscale=0.707, mscale_all_dim=1.0),
    "yarn-betas": RopeSpec("yarn", 1e4, 40.0, 4096, beta_fast=24.0, beta_slow=2.0),
    "yarn-no-truncate": RopeSpec("yarn", 1.5e5, 40.0, 4096, truncate=False),
    "llama3-alia-32k": ALIA_32K,
    "llama3-alia-160k": ALIA_160K,
    "llama3-released": RopeSpec(
        "llama3", 5e5, 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0
    ),
}
HEAD_DIMS = (32, 64, 128)


def upstream_config(spec: RopeSpec, head_dim: int, context: int) -> LlamaConfig:
    used = {
        name: getattr(spec, name)
        for name in spec.used_fields()
        if getattr(spec, name) is not None
    }
    longest = context
    if (
        spec.type == "dynamic"
    ):  # upstream keeps the original length of this type outside rope_parameters
        longest = used.pop("original_max_position_embeddings")
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": spec.type, "rope_theta": spec.theta, **used},
    )


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("name", SPECS)
def test_frequencies_equal_upstream_bit_for_bit(name: str, head_dim: int) -> None:
    spec = SPECS[name]
    config = upstream_config(spec, head_dim, LONGEST)
    if spec.type == "default":
        expected, scaling = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, scaling = ROPE_INIT_FUNCTIONS[spec.type](config, seq_len=LONGEST)
    ours, our_scaling = inverse_frequencies(spec, head_dim, LONGEST)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)
    assert our_scaling == scaling


@pytest.mark.parametrize(
    "name", [name for name in SPECS if not name.startswith("dynamic")]
)
def test_angles_and_rotation_equal_upstream_at_all_positions(name: str) -> None:
    spec, head_dim = SPECS[name], 128
    positions = torch.cat(
        [torch.arange(0, LONGEST, 997), torch.arange(LONGEST - 40, LONGEST)]
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(positions), 2, head_dim, generator=generator)
    upstream = LlamaRotaryEmbedding(upstream_config(spec, head_dim, LONGEST))
    their_cos, their_sin = upstream(x, positions[None])
    expected, _ = apply_rotary_pos_emb(
        x.transpose(0, 1)[None], x.transpose(0, 1)[None], their_cos, their_sin
    )

    cos, sin = cos_sin(positions, *inverse_frequencies(spec, head_dim, LONGEST))
    assert torch.equal(cos, their_cos[0, :, : head_dim // 2])
    assert torch.equal(sin, their_sin[0, :, : head_dim // 2])
    assert torch.equal(rotate(x, cos, sin), expected[0].transpose(0, 1))


@pytest.mark.parametrize("name", ["dynamic", "dynamic-large"])
def test_dynamic_is_within_one_fp32_base_of_the_upstream_module(name: str) -> None:
    """Upstream's module forms the new base in fp32 (from a tensor length), its function in
    fp64, as we do.

    The base then differs by a relative 2**-22 at most (a few fp32 roundings), and
    frequency i by i/f times that.
    """
    spec, head_dim = SPECS[name], 64
    module = LlamaRotaryEmbedding(upstream_config(spec, head_dim, LONGEST))
    module(torch.zeros(1), torch.tensor([[LONGEST - 1]]))
    ours, _ = inverse_frequencies(spec, head_dim, LONGEST)
    torch.testing.assert_close(ours, module.inv_freq, rtol=2**-20, atol=0)


@pytest.mark.parametrize(
    "name", ["default", "llama3-alia-32k", "llama3-alia-160k", "yarn"]
)
def test_fp32_angles_at_the_last_position(name: str) -> None:
    """Position 163,839 turns the first pair by 163,839 radians: an fp32 angle is within
    half a unit in its last place.

    That is 2**-8 rad there (163,839 < 2**18, 24 bits), and the frequency's own rounding
    adds as much; a bf16 angle would be off by up to 512 rad.
    """
    spec, position = SPECS[name], LONGEST - 1
    frequencies, scaling = inverse_frequencies(spec, 128, LONGEST)
    cos, sin = cos_sin(torch.tensor([position]), frequencies, scaling)
    angles = position * frequencies.double()
    assert (
        cos[0].double() - angles.cos() * scaling
    ).abs().max() < 1.01 * 2**-8 * scaling
    assert (
        sin[0].double() - angles.sin() * scaling
    ).abs().max() < 1.01 * 2**-8 * scaling


def test_llama3_uses_its_own_original_length() -> None:
    """The ramp is where the spec says and not at Llama 3.1's 8,192:

    a wavelength of 4,096/2 is blended, not kept.
    """
    frequencies, _ = inverse_frequencies(ALIA_160K, 128, LONGEST)
    plain, _ = inverse_frequencies(RopeSpec("default", 1e4), 128, LONGEST)
    wavelengths = 2 * math.pi / plain
    assert torch.equal(frequencies[wavelengths < 1024], plain[wavelengths < 1024])
    torch.testing.assert_close(
        frequencies[wavelengths > 4096], plain[wavelengths > 4096] / 40, rtol=0, atol=0
    )
    between = (wavelengths > 1024) & (wavelengths < 4096)
    assert between.sum() > 5
    assert (frequencies[between] < plain[between]).all()
    assert (frequencies[between] > plain[between] / 40).all()


def test_dynamic_leaves_rows_within_the_original_length_alone() -> None:
    plain, _ = inverse_frequencies(RopeSpec("default", 1e4), 64, 4096)
    within, _ = inverse_frequencies(SPECS["dynamic"], 64, 2048)
    beyond, _ = inverse_frequencies(SPECS["dynamic"], 64, 8192)
    assert torch.equal(within, plain)
    assert (beyond[1:] < plain[1:]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_is_the_inverse_turn(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x = torch.randn(7, 3, 16, dtype=torch.float64, requires_grad=True)
    cos, sin = cos_sin(
        torch.arange(7) * 1000, *inverse_frequencies(ALIA_32K, 16, LONGEST)
    )
    dense = torch.cat([x[..., :8] * cos[:, None] - x[..., 8:] * sin[:, None],
                       x[..., 8:] * cos[:, None] + x[..., :8] * sin[:, None]], dim=-1)  # fmt: skip
    upstream_gradient = torch.randn_like(dense).to(dtype)
    dense.backward(upstream_gradient.double())
    ours = x.detach().to(dtype).requires_grad_()
    out = rotate(ours, cos, sin)
    out.backward(upstream_gradient)
    assert out.dtype == dtype
    # bf16: the gradient's input is exact here and the result is rounded once, to 8 bits.
    tolerance = {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 2**-8}[
        dtype
    ]
    torch.testing.assert_close(
        ours.grad.double(), x.grad, rtol=tolerance, atol=tolerance * 4
    )


def test_bf16_is_closer_to_exact_than_upstream() -> None:
    """One rounding against upstream's rounded cos, sin and products."""
    positions = torch.arange(LONGEST - 2048, LONGEST)
    x = torch.randn(2048, 2, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    cos, sin = cos_sin(positions, *inverse_frequencies(ALIA_160K, 128, LONGEST))
    exact = rotate(x.double(), cos, sin)
    both = [torch.cat((part, part), -1).bfloat16()[None] for part in (cos, sin)]
    theirs, _ = apply_rotary_pos_emb(
        x.transpose(0, 1)[None], x.transpose(0, 1)[None], *both
    )
    our_error = (rotate(x, cos, sin).double() - exact).abs()
    their_error = (theirs[0].transpose(0, 1).double() - exact).abs()
    # Half a unit in the last of 8 bits, and the fp32 products' own error where the two
    # nearly cancel.
    assert (our_error <= exact.abs() * 2**-8 + x.double().abs().max() * 2**-22).all()
    assert our_error.mean() < 0.6 * their_error.mean()


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rope\.low_freq_factor"):
        inverse_frequencies(
            RopeSpec("llama3", 1e4, 8.0, 4096, high_freq_factor=4.0), 128, 4096
        )
    with pytest.raises(ConfigError, match="head_dim=63"):
        inverse_frequencies(SPECS["default"], 63, 4096)


def edges(name: str) -> Iterator[RopeSpec]:
    """A type at the edges of each of its fields, and beyond."""
    needs = ROPE_TYPES[name].needs
    factors = (1.0, 1e10, 1e38, 1e300) if "factor" in needs else (None,)
    lengths = (1, 4096, 2**48, 10**400) if len(needs) > 1 else (None,)
    others: tuple[dict[str, Any], ...] = ({},)
    if name == "llama3":
        bands = ((1.0, 4.0), (1e-320, 3e38), (1.0, 1 + 4e-16))
        others = tuple({"low_freq_factor": a, "high_freq_factor": b} for a, b in bands)
    if name == "yarn":
        others += (
            {"beta_fast": 3e38, "beta_slow": 1e-320},
            {"mscale": 3e38, "mscale_all_dim": 1e-30},
            {"attention_factor": 1e-320},
        )
    thetas = (1.0000001, 1e4, 1e30, 3e38, 1e39, 1e300)
    for theta, factor, length, more in product(thetas, factors, lengths, others):
        yield RopeSpec(name, theta, factor, length, **more)


@pytest.mark.parametrize("head_dim", [2, 4, 128])
@pytest.mark.parametrize("name", sorted(ROPE_TYPES))
def test_frequencies_are_numbers_above_zero_or_refused(
    name: str, head_dim: int
) -> None:
    """Whatever `check` lets pass rotates, and what it refuses is not computed."""
    computed = 0
    for spec, context in product(edges(name), (1, 4096)):
        problems = spec.problems("rope", context, head_dim)
        try:
            frequencies, scaling = inverse_frequencies(spec, head_dim, context)
        except ConfigError:
            assert problems, spec
            continue
        computed += 1
        assert torch.isfinite(frequencies).all() and (frequencies > 0).all(), spec
        assert 0 < torch.tensor(scaling) < torch.inf, spec
        # what the builder does not ask is whether the RoPE reaches the context
        assert all("reaches" in problem.rule for problem in problems), spec
    assert bool(computed) == (name != "dynamic" or head_dim > 2)


def test_a_dynamic_rope_of_one_pair_is_refused_as_upstream_fails() -> None:
    spec = RopeSpec("dynamic", 1e4, 2.0, 32)
    with pytest.raises(ZeroDivisionError):
        ROPE_INIT_FUNCTIONS["dynamic"](upstream_config(spec, 2, 32), seq_len=64)
    [problem] = spec.problems("stages.a.rope", 64, 2)
    assert str(problem).startswith(
        "stages.a.rope=type dynamic, theta 10000.0, factor 2"
    )
    vanishing = RopeSpec("dynamic", 1e4, 1e38, 1)
    [problem] = vanishing.problems("stages.a.rope", 64, 8)
    assert "the frequency of pair 1 of 4 comes to 0 in fp32" in problem.rule
