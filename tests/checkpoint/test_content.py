"""A checksum of tensors that is the same however they are cut, and another for others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.checkpoint.boxes import boxes
from alia_ctx.checkpoint.content import CONTENT, box_sum, content_entry, content_of
from alia_ctx.checkpoint.dcp_files import record_file

MODULUS = 2**64
FLOATS = (torch.float32, torch.bfloat16, torch.float64, torch.uint8)


def splitmix(number: int) -> int:
    """Output of SplitMix64 from the state `number` - 1 steps after 0, as its authors have it."""
    state = number * 0x9E3779B97F4A7C15 % MODULUS
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % MODULUS
    state = (state ^ state >> 27) * 0x94D049BB133111EB % MODULUS
    return state ^ state >> 31


def test_one_value_after_the_other_gives_the_same_sum() -> None:
    assert splitmix(1) == 0xE220A8397B1DCDAF, "the first output for the seed 0"
    values = torch.tensor([[1.5, -2.0, 0.25], [0.0, 3.0, -0.5]])
    bits = [[0x3FC00000, 0xC0000000, 0x3E800000], [0, 0x40400000, 0xBF000000]]
    name = xxhash.xxh3_64_intdigest(b"a.weight") | 1
    expected = sum(
        bits[row][column]
        * name
        * (splitmix(1 + 4 + row) | 1)
        * (splitmix(1 + 2**48 + 7 + column) | 1)
        for row in range(2)
        for column in range(3)
    )
    assert box_sum("a.weight", (4, 7), values) == expected % MODULUS


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from(FLOATS),
    data=st.data(),
)
def test_any_cut_gives_the_same_content(
    shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    whole = (torch.randn(shape) * 50).to(dtype)
    cuts = data.draw(st.lists(st.integers(0, whole.numel()), max_size=5).map(sorted))
    parts = 0
    for start, stop in zip([0, *cuts], [*cuts, whole.numel()], strict=True):
        for offsets, sizes in boxes(shape, start, stop):
            box = tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))
            parts += box_sum("w", offsets, whole[box].contiguous())
    assert content_entry(parts) == content_entry(box_sum("w", (0,) * len(shape), whole))


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_value_counts_and_so_does_its_place(dtype: torch.dtype) -> None:
    whole = torch.arange(1, 25).reshape(2, 3, 4).to(dtype)
    sums = [box_sum("w", (0, 0, 0), whole), box_sum("v", (0, 0, 0), whole)]
    for number in range(whole.numel()):
        other = whole.clone()
        other.view(-1).view(torch.uint8)[number * whole.itemsize] ^= 1
        sums.append(box_sum("w", (0, 0, 0), other))
    for axis in range(3):
        sums.append(box_sum("w", (0, 0, 0), whole.roll(1, axis)))
    if dtype.is_signed:  # the signs alone
        turned = whole.clone()
        turned[0, 0, :2] *= -1
        sums += [box_sum("w", (0, 0, 0), turned), box_sum("w", (0, 0, 0), -whole)]
    assert len(set(sums)) == len(sums)


def test_rows_of_zeros_and_scalars() -> None:
    table = torch.randn(5, 3)
    padded = torch.cat([table, torch.zeros(3, 3)])
    assert box_sum("e", (0, 0), padded) == box_sum("e", (0, 0), table) != 0
    assert box_sum("s", (), torch.tensor(2.0)) != box_sum("s", (), torch.tensor(3.0))
    assert box_sum("e", (5, 0), torch.empty(0, 3)) == 0


def test_what_is_streamed_has_the_content_of_what_is_whole(tmp_path: Path) -> None:
    """Blocks of 2 MiB, of a tensor that stacks layers."""
    shape = (3000, 257)
    layer = torch.randn(shape)
    assert math.prod(shape) * 4 > 2 << 20

    def fill(start: int, out: torch.Tensor) -> None:
        out.copy_(layer[start : start + len(out)])

    with record_file(tmp_path, 0) as streamed:
        streamed.append_streamed("w", (2, 10, 0), shape, torch.float32, fill)
        streamed.append_streamed(
            "b", (4,), (3,), torch.float32, lambda _, o: o.fill_(2)
        )
    with record_file(tmp_path, 1) as whole:
        whole.append_tensor("w", (2, 10, 0), layer[None].clone())
    with record_file(tmp_path, 2) as rest:
        rest.append_tensor("b", (4,), torch.full((3,), 2.0))
        rest.append_object("common", {"step": 3})
    entries = [file.part.files[file.name] for file in (streamed, whole, rest)]
    assert entries[0][CONTENT] == content_of(entries[1:]) != entries[1][CONTENT]


def test_files_of_older_releases_state_no_content() -> None:
    entry = {"bytes": 4, "xxh3_128": "00"}
    assert content_of([]) is None
    assert content_of([{**entry, CONTENT: content_entry(3)}, entry]) is None
    assert (
        content_of([{CONTENT: "f" * 16}, {CONTENT: "0" * 15 + "2"}]) == "0" * 15 + "1"
    )
