"""A layout is found for whatever ranks there are, and where none is, enough are named."""

from __future__ import annotations

import pytest

from alia_ctx.errors import LayoutError
from alia_ctx.planner.evaluation_layout import evaluation_layout
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.hf_models import ALIA

SMALL = ModelSpec(
    num_hidden_layers=4,
    hidden_size=64,
    intermediate_size=192,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=1000,
)
GIB = 1 << 30


def layout(model: ModelSpec, context: int, world: int, gib: float = 64.0) -> Layout:
    return evaluation_layout(
        model,
        context,
        world,
        weight_bytes=2,
        memory_bytes=int(gib * GIB),
        loss_chunk_tokens=2048,
    )


def test_rows_go_to_ranks_whole_while_they_are_short() -> None:
    for world in (1, 2, 3, 8, 13):
        assert layout(SMALL, 4096, world) == Layout()


def test_long_rows_go_over_all_ranks_that_divide_them() -> None:
    assert layout(SMALL, 163_840, 8) == Layout(cp=8)
    assert layout(SMALL, 32_768, 2) == Layout(cp=2)
    # 3 divides no such row: every rank takes rows of its own
    assert layout(SMALL, 32_768, 3) == Layout()


def test_a_large_model_is_cut_over_as_few_ranks_as_it_fits_on() -> None:
    """80.9 GB of bf16 weights: two GPUs of 64 GiB hold 40.4 GB each."""
    found = layout(ALIA, 4096, 8)
    assert (found.tp, found.pp, found.cp) == (2, 1, 1)
    assert layout(ALIA, 163_840, 8).cp > 1


def test_where_nothing_fits_enough_ranks_are_named() -> None:
    with pytest.raises(LayoutError, match=r"start (\d+) ranks: `torchrun") as error:
        layout(ALIA, 4096, 1)
    enough = int(str(error.value).split("start ")[1].split()[0])
    assert layout(ALIA, 4096, enough).model_ranks <= enough
    with pytest.raises(LayoutError, match="shorter context"):
        layout(ALIA, 4096, 1, gib=0.1)
