"""The weight table: literal examples, and the two directions as inverses of each other."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.hf.rules import EMBEDDING, HEAD, Rows, WeightMap
from alia_ctx.spec.model import ModelSpec
from tests.hf_models import ALIA

QKV = "decoder.layers.self_attention.linear_qkv.weight"
SMALL = ModelSpec(
    num_hidden_layers=2,
    hidden_size=8,
    intermediate_size=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
    vocab_size=10,
)


def test_q_k_and_v_are_dealt_by_kv_group() -> None:
    attention = "model.layers.1.self_attn."
    q, k, v = (f"{attention}{x}_proj.weight" for x in "qkv")
    assert WeightMap(SMALL).sources(QKV, 1).runs == [
        Rows(q, None, 0, 4),
        Rows(k, None, 0, 2),
        Rows(v, None, 0, 2),
        Rows(q, None, 4, 4),
        Rows(k, None, 2, 2),
        Rows(v, None, 2, 2),
    ]


def test_gate_and_up_are_stacked() -> None:
    runs = WeightMap(SMALL).sources("decoder.layers.mlp.linear_fc1.weight", 0).runs
    assert runs == [
        Rows("model.layers.0.mlp.gate_proj.weight", None, 0, 12),
        Rows("model.layers.0.mlp.up_proj.weight", None, 0, 12),
    ]


def test_runs_between_two_rows() -> None:
    cut = list(WeightMap(SMALL).sources(QKV, 0).between(3, 9))
    prefix = "model.layers.0.self_attn."
    assert cut == [
        Rows(f"{prefix}q_proj.weight", None, 3, 1),
        Rows(f"{prefix}k_proj.weight", None, 0, 2),
        Rows(f"{prefix}v_proj.weight", None, 0, 2),
        Rows(f"{prefix}q_proj.weight", None, 4, 1),
    ]


def test_alia_40b_has_its_parameters() -> None:
    weights = WeightMap(ALIA)
    count = sum(
        shape[0] * (shape[1] if len(shape) > 1 else 1)
        for shape in weights.huggingface_shapes().values()
    )
    assert count == ALIA.parameters() == 40_433_885_184
    names = list(weights.huggingface_shapes())
    assert (names[0], names[-1]) == (EMBEDDING, HEAD)


@pytest.mark.parametrize(
    "change, tensors",
    [
        ({}, 9 * 2 + 3),
        ({"tie_word_embeddings": True}, 9 * 2 + 2),
        ({"attention_bias": True}, 12 * 2 + 3),
        ({"qk_norm": True}, 11 * 2 + 3),
    ],
)
def test_which_tensors_a_model_has(change: dict[str, bool], tensors: int) -> None:
    model = ModelSpec(**{**SMALL.__dict__, **change})
    assert len(WeightMap(model).huggingface_shapes()) == tensors


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 4),
    queries=st.integers(1, 3),
    half=st.integers(1, 3),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    norm=st.booleans(),
    tied=st.booleans(),
)
def test_every_row_has_one_home_and_comes_back(
    groups: int,
    queries: int,
    half: int,
    layers: int,
    bias: bool,
    norm: bool,
    tied: bool,
) -> None:
    model = ModelSpec(
        num_hidden_layers=layers,
        hidden_size=6,
        intermediate_size=5,
        num_attention_heads=groups * queries,
        num_key_value_heads=groups,
        head_dim=2 * half,
        vocab_size=7,
        attention_bias=bias,
        qk_norm=norm,
        tie_word_embeddings=tied,
    )
    weights = WeightMap(model)
    there = {
        (name, layer, row): (run.name, run.start + offset)
        for name, (shape, stacked) in weights.megatron_shapes().items()
        for layer in (range(stacked) if stacked else [None])
        for row, (run, offset) in enumerate(
            (run, i)
            for run in weights.sources(name, layer).between(0, shape[0])
            for i in range(run.count)
        )
    }
    assert max(Counter(there.values()).values()) == 1
    for name, shape, home in weights.huggingface_tensors():
        rows = [
            (run.name, run.layer, run.start + i)
            for run in home.between(0, shape[0])
            for i in range(run.count)
        ]
        assert [there.pop(row) for row in rows] == [(name, i) for i in range(shape[0])]
    assert not there
