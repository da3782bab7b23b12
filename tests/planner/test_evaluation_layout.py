"""A layout is found for whatever ranks there are, and where none is, enough are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alia_ctx.errors import LayoutError
from alia_ctx.planner.evaluation_layout import evaluation_layout
from alia_ctx.spec.layout import Layout, zigzag_chunks
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


@pytest.mark.parametrize("context", [101, 333, 32_769])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_an_odd_context_is_read_whole(context: int, world: int) -> None:
    """Nothing has to be cut where no rank shares a row."""
    assert layout(SMALL, context, world) == Layout()
    assert not Layout(pp=2).problems("layout", SMALL, context, 2)


def test_what_cannot_be_cut_is_not_called_a_lack_of_memory() -> None:
    """Half of ALIA fits on a GPU; its layers can be cut whatever the rows are."""
    with pytest.raises(LayoutError) as error:
        layout(ALIA, 4096, 5)
    said = str(error.value)
    assert "do not divide the model" in said and "num_key_value_heads=8" in said
    with pytest.raises(LayoutError) as error:
        layout(replace(ALIA, num_hidden_layers=47), 333, 2)
    said = str(error.value)
    assert "do not divide rows of 333 tokens" in said and "evaluate 336" in said
    assert "GiB" not in said


def test_an_odd_row_is_cut_by_nobody_and_that_is_the_remedy() -> None:
    (problem,) = Layout(cp=2).problems("layout", SMALL, 333, 2)
    assert problem.remedy == "1 fit"
    with pytest.raises(LayoutError, match="cp=1 fit"):
        zigzag_chunks(333, 2, 0)
    assert zigzag_chunks(333, 1, 0) == ((0, 333),)
