"""Tensors inside files: what counts as finite, archives at an offset, files that end too early."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch

from alia_ctx.checkpoint.tensor_files import (
    FLOATS,
    TensorFiles,
    TensorPlace,
    archive_tensors,
    is_finite,
)
from alia_ctx.errors import CheckpointError


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_16_bit_pattern_is_judged_as_torch_judges_it(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32)
    values = (
        (patterns << 16).view(torch.float32)
        if dtype == torch.float32
        else patterns.to(torch.int16).view(dtype)
    )
    expected = torch.isfinite(values)
    assert [is_finite(value.view(1)) for value in values[::37]] == expected[
        ::37
    ].tolist()
    assert is_finite(values[expected].contiguous()) and not is_finite(values)


@pytest.mark.parametrize("position", [0, 262143, 262144, 299_999])
def test_one_bad_value_is_found_wherever_it_is(position: int) -> None:
    values = torch.ones(300_000, dtype=torch.bfloat16)
    assert is_finite(values)
    values[position] = float("nan")
    assert not is_finite(values)


def test_an_archive_at_an_offset(tmp_path: Path) -> None:
    value = torch.arange(60, dtype=torch.float32).view(12, 5)
    stream = io.BytesIO()
    torch.save({"a": value[3:], "b": value.to(torch.bfloat16)}, stream)
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000 + stream.getvalue() + b"y" * 77)
    places = archive_tensors(file, 1000, len(stream.getvalue()))
    with TensorFiles() as files:
        for name, expected in [("a", value[3:]), ("b", value.to(torch.bfloat16))]:
            assert (places[name].shape, places[name].dtype) == (
                tuple(expected.shape),
                expected.dtype,
            )
            out = torch.empty((4, 5), dtype=expected.dtype)
            files.read_rows(places[name], 2, out)
            assert torch.equal(out, expected[2:6])


def test_what_is_no_archive_of_tensors(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for value, said in [
        ([1], "holds list"),
        ({"a": 1}, "a is int"),
        ({"a": torch.device("cpu")}, "a is device"),
        ({"a": torch.ones(3, 4).T}, "a is a non-contiguous"),
    ]:
        torch.save(value, file)
        with pytest.raises(CheckpointError, match=said):
            archive_tensors(file)
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="file"):
        archive_tensors(file)


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100))
    place = TensorPlace(file, 60, (10, 2), torch.float32)
    with TensorFiles() as files:
        files.read_rows(place, 0, torch.empty((5, 2)))
        with pytest.raises(
            CheckpointError,
            match="file: ends at byte 100, a tensor goes on for 40 more",
        ):
            files.read_rows(place, 0, torch.empty((10, 2)))
        with pytest.raises(CheckpointError, match="none: cannot be opened"):
            files.read_rows(
                TensorPlace(tmp_path / "none", 0, (1,), torch.float32),
                0,
                torch.empty(1),
            )
