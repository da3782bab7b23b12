"""Corrupt models and checkpoints are named, and leave nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx.checkpoint import dcp_store
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import export_hf, import_hf
from tests.hf.conversions import SHARD, edit_shard, first_matrix, poison
from tests.hf_models import (
    edit_json,
    make_model,
    save_model,
    write_tokenizer,
)


def _truncate(file: Path, by: int = 100) -> None:
    os.truncate(file, file.stat().st_size - by)


def _flip(file: Path, position: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 4]))


def _transpose(weights: dict[str, torch.Tensor]) -> None:
    name = first_matrix(weights)
    weights[name] = weights[name].reshape(-1, 2)


def _mix_dtypes(weights: dict[str, torch.Tensor]) -> None:
    name = first_matrix(weights)
    weights[name] = weights[name].float()


def _integers(weights: dict[str, torch.Tensor]) -> None:
    name = first_matrix(weights)
    weights[name] = weights[name].to(torch.int8)


def _forget_in_index(directory: Path) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    edit_json(directory / "model.safetensors.index.json", **index)


def _promise_in_index(directory: Path) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = SHARD
    edit_json(directory / "model.safetensors.index.json", **index)


def _list_in(shard: Any) -> Callable[[Path], None]:
    """The index lists a shard that is there, but not beside it, or that is no name."""

    def change(directory: Path) -> None:
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        names = {n: shard for n, file in index["weight_map"].items() if file == SHARD}
        (directory / "sub").mkdir()
        (directory / SHARD).rename(directory / "sub" / SHARD)
        index["weight_map"].update(names)
        edit_json(directory / "model.safetensors.index.json", **index)

    return change


def _swap_head(directory: Path) -> None:
    edit_json(directory / "config.json", tie_word_embeddings=True)


CORRUPTIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated shard": (
        lambda d: _truncate(d / SHARD),
        f"{SHARD}: .* the file is truncated",
    ),
    "shard cut in its header": (
        lambda d: os.truncate(d / SHARD, 20),
        f"{SHARD}: 20 bytes cannot hold a header",
    ),
    "bit flip in a header": (
        lambda d: _flip(d / SHARD, 9),
        f"{SHARD}: .*(header is damaged|does not list it)",
    ),
    "missing shard": (lambda d: (d / SHARD).unlink(), f"{SHARD}: missing"),
    "missing index entry": (
        _forget_in_index,
        "model.norm.weight, but .*index.json does not list it",
    ),
    **{
        f"shard as {shard!r}": (
            _list_in(shard),
            r"index.json: lists .*, which is not the name of a file beside it; put all",
        )
        for shard in (f"sub/{SHARD}", f"/sub/{SHARD}", 3, [SHARD], None)
    },
    "index without tensor": (
        _promise_in_index,
        "lists model.layers.9.mlp.up_proj.weight",
    ),
    "no index": (
        lambda d: (d / "model.safetensors.index.json").unlink(),
        "no model.safetensors.index.json",
    ),
    "missing tensors": (
        lambda d: edit_json(d / "config.json", num_hidden_layers=5),
        "model.layers.4.* is missing",
    ),
    "surplus tensors": (
        lambda d: edit_json(d / "config.json", num_hidden_layers=3),
        "model.layers.3.* is surplus",
    ),
    "wrong shape": (
        lambda d: edit_shard(d, _transpose),
        r"has shape \[\d+, 2\], config.json makes it",
    ),
    "NaN": (
        lambda d: edit_shard(d, poison(float("nan"))),
        f"{SHARD}: model.* NaN or infinite .* in row 3",
    ),
    "infinity": (
        lambda d: edit_shard(d, poison(float("-inf"))),
        f"{SHARD}: model.* NaN or infinite .* in row 3",
    ),
    "two dtypes in a tensor": (
        lambda d: edit_shard(d, _mix_dtypes),
        "torch.float32.*ask for one dtype",
    ),
    "integer weights": (
        lambda d: edit_shard(d, _integers),
        "is torch.int8, supported are",
    ),
    "foreign tokenizer": (
        lambda d: write_tokenizer(d, 200),
        "tokenizer.json: has token id 199.*vocab_size is 96",
    ),
    "untied head called tied": (_swap_head, "lm_head.weight differs"),
    "other sizes": (
        lambda d: edit_json(d / "config.json", hidden_size=32, head_dim=16),
        "config.json makes",
    ),
    "config cut short": (
        lambda d: _truncate(d / "config.json"),
        "config.json: not readable as JSON",
    ),
    "no config": (
        lambda d: (d / "config.json").unlink(),
        "config.json: there is no such file",
    ),
    "rope we lack": (
        lambda d: edit_json(
            d / "config.json", rope_parameters={"rope_type": "longrope"}
        ),
        "longrope",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupt_source_is_named_and_leaves_nothing(
    tmp_path: Path, source: Path, name: str
) -> None:
    corrupt, said = CORRUPTIONS[name]
    corrupt(source)
    with pytest.raises(CheckpointError, match=said):
        import_hf(source, tmp_path / "ck")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_a_truncated_bin_is_named(tmp_path: Path) -> None:
    model = make_model("llama")
    model.config.save_pretrained(tmp_path / "hf")
    torch.save(model.state_dict(), tmp_path / "hf/pytorch_model.bin")
    _truncate(tmp_path / "hf/pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"pytorch_model.bin: not a readable torch archive"
    ):
        import_hf(tmp_path / "hf", tmp_path / "ck")


def _nan_in_state(path: Path) -> None:
    with dcp_store.open_state(path / "state") as state:
        state.read_rows(
            "output_layer.weight", None, 0, torch.empty((1, 64), dtype=torch.bfloat16)
        )
        place = next(iter(state._places.values()))
    with place.file.open("r+b") as stream:
        stream.seek(place.offset)
        stream.write(np.array([0x7FC0], dtype=np.uint16).tobytes())


STATE_CORRUPTIONS: dict[str, tuple[Callable[[Path], Any], bool, str]] = {
    "bit flip": (
        lambda c: _flip(c / "state/__0_0.distcp", 50_000),
        True,
        "__0_0.distcp: checksum differs",
    ),
    "truncated": (
        lambda c: _truncate(c / "state/__0_0.distcp"),
        True,
        "__0_0.distcp: .* bytes instead of",
    ),
    "truncated, unchecked": (
        lambda c: os.truncate(c / "state/__0_0.distcp", 50_000),
        False,
        "__0_0.distcp",
    ),
    "missing file": (
        lambda c: (c / "state/__0_0.distcp").unlink(),
        True,
        "__0_0.distcp: missing",
    ),
    "missing file, unchecked": (
        lambda c: (c / "state/__0_0.distcp").unlink(),
        False,
        "__0_0.distcp",
    ),
    "metadata cut": (
        lambda c: _truncate(c / "state/.metadata"),
        False,
        ".metadata: not readable",
    ),
    "metadata missing": (
        lambda c: (c / "state/.metadata").unlink(),
        False,
        ".metadata: missing",
    ),
    "another model": (
        lambda c: edit_json(
            c / "manifest.json",
            model={
                **json.loads((c / "manifest.json").read_text())["model"],
                "num_hidden_layers": 5,
            },
        ),
        False,
        "model changed after the file was written",
    ),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), True, "not a checkpoint"),
    "NaN": (_nan_in_state, False, "lm_head.weight has NaN or infinite values"),
    "foreign tokenizer": (
        lambda c: write_tokenizer(c / "assets", 97),
        False,
        "token id 96",
    ),
}


@pytest.mark.parametrize("name", STATE_CORRUPTIONS)
def test_a_corrupt_checkpoint_is_named_and_leaves_nothing(
    tmp_path: Path, source: Path, name: str
) -> None:
    corrupt, check, said = STATE_CORRUPTIONS[name]
    import_hf(source, tmp_path / "ck")
    corrupt(tmp_path / "ck")
    with pytest.raises(CheckpointError, match=said):
        export_hf(tmp_path / "ck", tmp_path / "out", check=check)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck", "hf"]


def test_overflow_in_a_narrower_dtype_is_an_error(tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[1, 2] = 1e30
    model.save_pretrained(tmp_path / "hf", max_shard_size="80KB")
    with pytest.raises(
        CheckpointError,
        match=r"layers.2.mlp.up_proj.weight .* torch.float16, first in row 1",
    ):
        import_hf(tmp_path / "hf", tmp_path / "ck", dtype=torch.float16)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    with pytest.raises(CheckpointError, match="float16"):
        export_hf(tmp_path / "ck", tmp_path / "out", dtype=torch.float16)
