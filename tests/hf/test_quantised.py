"""Quantised weights are refused as such, in whichever number format they are packed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import import_hf
from alia_ctx.hf.weight_files import locate_weights
from tests.hf_models import edit_json, save_model

# Every dtype of safetensors (0.8) that no model's own weights are in, and its bits.
PACKED = {
    **{"U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64},
    **{"F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
NAME = "model.layers.0.mlp.up_proj.weight"


def write(file: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    """A safetensors file by its format: length of the header, header, data."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def packed(directory: Path, dtype: str) -> None:
    """One matrix of the model in `dtype`, with scales beside it."""
    file = directory / "model.safetensors"
    tensors = {
        name: ("F32", list(w.shape), w.numpy().tobytes())
        for name, w in load_file(file).items()
    }
    shape = [128, 16]
    size = math.prod(shape) * PACKED[dtype] // 8
    scales = NAME.replace("weight", "scales")
    tensors |= {NAME: (dtype, shape, bytes(size)), scales: ("F16", [2], bytes(4))}
    write(file, tensors)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    save_model(tmp_path / "hf", dtype=torch.float32, shards="1GB")
    return tmp_path / "hf"


@pytest.mark.parametrize("dtype", PACKED)
def test_a_packed_tensor_is_quantised_and_no_damage(plain: Path, dtype: str) -> None:
    packed(plain, dtype)
    assert NAME in locate_weights(plain)  # whoever evaluates it reads its files
    with pytest.raises(CheckpointError) as refusal:
        import_hf(plain, plain.parent / "ck")
    said = str(refusal.value)
    assert NAME in said and "quantised" in said and "unquantised" in said
    assert "damaged" not in said and "copy it again" not in said
    assert [p.name for p in plain.parent.iterdir()] == ["hf"]


def test_a_dtype_that_is_none_is_damage(plain: Path) -> None:
    write(plain / "model.safetensors", {NAME: ("F99", [1], b"\0")})
    with pytest.raises(CheckpointError, match=r"header is damaged .*F99 is unknown"):
        import_hf(plain, plain.parent / "ck")


def test_packed_bytes_must_be_as_many_as_the_shape_takes(plain: Path) -> None:
    write(plain / "model.safetensors", {NAME: ("F4", [4, 4], bytes(9))})
    with pytest.raises(CheckpointError, match=r"shape \[4, 4\] of F4 does not fill"):
        import_hf(plain, plain.parent / "ck")


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_config_json_says_it(plain: Path, key: str) -> None:
    edit_json(plain / "config.json", **{key: {"group_size": 64, "bits": 4}})
    with pytest.raises(CheckpointError, match=f"{key}=.* unquantised weights"):
        import_hf(plain, plain.parent / "ck")
    edit_json(plain / "config.json", **{key: None})
    import_hf(plain, plain.parent / "ck")


def test_surplus_whole_numbers_are_not_called_quantised(plain: Path) -> None:
    file = plain / "model.safetensors"
    surplus = {"model.position_ids": torch.arange(16)}
    save_file({**load_file(file), **surplus}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"position_ids is surplus"):
        import_hf(plain, plain.parent / "ck")
