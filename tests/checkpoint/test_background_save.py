"""What a rank writes of a checkpoint:

the boxes of a flat range, copies, and a metadata that is complete or refused.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.checkpoint.background_save import Staging, TensorBox
from alia_ctx.checkpoint.boxes import boxes
from alia_ctx.checkpoint.dcp_files import record_file, write_metadata
from alia_ctx.checkpoint.dcp_store import open_state
from alia_ctx.errors import CheckpointError

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@given(shape=shapes, data=st.data())
def test_boxes_of_ranges_are_the_tensor_in_order(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    cuts = data.draw(st.lists(st.integers(0, numbers.size), max_size=5).map(sorted))
    seen: list[int] = []
    for start, stop in zip([0, *cuts], [*cuts, numbers.size], strict=True):
        found = list(boxes(shape, start, stop))
        assert len(found) <= 2 * len(shape) - 1
        for offsets, sizes in found:
            box = tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True))
            assert numbers[box].shape == sizes
            seen += numbers[box].ravel().tolist()
    assert seen == numbers.ravel().tolist()


def test_a_copy_is_its_own_storage_and_shared_values_are_copied_once() -> None:
    live = torch.arange(12.0)
    staging = Staging()
    pieces = [
        TensorBox("a", (0, 0), (2, 3), live[:6]),
        TensorBox("b", (0, 0), (2, 3), live[:6]),
        TensorBox("c", (6,), (6,), live[6:]),
    ]
    first, second, third = staging.copy(pieces)
    live.zero_()
    assert first.values.tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ] and third.values.tolist() == [6, 7, 8, 9, 10, 11]
    assert (
        first.values.data_ptr() == second.values.data_ptr() != third.values.data_ptr()
    )
    assert third.values.untyped_storage().nbytes() == third.values.nbytes, (
        "torch.save would write all of a larger one"
    )
    again = staging.copy(pieces)
    assert again[0].values.data_ptr() == first.values.data_ptr(), (
        "memory is kept from save to save"
    )


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple), data=st.data()
)
def test_any_box_is_read_from_boxes_of_any_cut(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    """Written by ranks that own flat ranges, read box by box as a rank of another layout would."""
    whole = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    cuts = data.draw(st.lists(st.integers(0, whole.numel()), max_size=4).map(sorted))
    low = [data.draw(st.integers(0, size - 1)) for size in shape]
    sizes = [
        data.draw(st.integers(1, size - start))
        for size, start in zip(shape, low, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for rank, (start, stop) in enumerate(
            zip([0, *cuts], [*cuts, whole.numel()], strict=True)
        ):
            with record_file(Path(folder), rank) as file:
                for offsets, box in boxes(shape, start, stop):
                    place = tuple(
                        slice(a, a + n) for a, n in zip(offsets, box, strict=True)
                    )
                    file.append_tensor("weight", offsets, whole[place].clone())
            parts.append(file.part)
        write_metadata(Path(folder), {"weight": (shape, torch.float32)}, parts)
        out = torch.full(sizes, math.nan)
        with open_state(Path(folder)) as reader:
            reader.read_box("weight", tuple(low), out)
    assert torch.equal(
        out, whole[tuple(slice(a, a + n) for a, n in zip(low, sizes, strict=True))]
    )


def test_metadata_of_missing_values_is_refused(tmp_path: Path) -> None:
    with record_file(tmp_path, 0) as file:
        file.append_tensor("weight", (0, 0), torch.ones(2, 3))
    with pytest.raises(
        CheckpointError, match="6 of the 12 values of weight were written"
    ):
        write_metadata(tmp_path, {"weight": ((4, 3), torch.float32)}, [file.part])
    assert not (tmp_path / ".metadata").exists()
