"""A model whose tensors are of several dtypes: what is compared is what its files have, and
its card counts what lies on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.verify import verify
from tests.hf_models import edit_json, save_model

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
WEIGHTS = "model.safetensors"


def rewrite(
    directory: Path, change: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    file = directory / WEIGHTS
    weights = {name: change(name, w) for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Matrices in bf16, norms in fp32 with values that bf16 has not; exported whole."""
    save_model(tmp_path / "hf", dtype=FP32, shards="1GB")
    rewrite(tmp_path / "hf", lambda name, w: w if "norm" in name else w.bfloat16())
    edit_json(tmp_path / "hf/config.json", dtype="bfloat16", torch_dtype="bfloat16")
    import_hf(tmp_path / "hf", tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    return tmp_path


def test_the_dtypes_stay_and_the_models_are_the_same(mixed: Path) -> None:
    before, after = (load_file(mixed / d / WEIGHTS) for d in ("hf", "out"))
    assert {w.dtype for w in after.values()} == {BF16, FP32}
    assert all(torch.equal(after[name], w) for name, w in before.items())
    for directory in ("hf", "out"):
        report = verify(mixed / directory, mixed / "ck")
        assert report.ok and "rounded" not in str(report), str(report)


@pytest.mark.parametrize("part", ["norm", "k_proj", "embed"])
def test_the_least_change_of_a_file_is_found(mixed: Path, part: str) -> None:
    """To the next value of the tensor's own dtype: of fp32 one that bf16 cannot tell."""

    def next_value(name: str, weight: torch.Tensor) -> torch.Tensor:
        if part not in name:
            return weight
        return torch.nextafter(weight, torch.full_like(weight, float("inf")))

    changed = sum(part in name for name in load_file(mixed / "out" / WEIGHTS))
    rewrite(mixed / "out", next_value)
    report = verify(mixed / "out", mixed / "ck")
    assert not report.ok and len(report.weight_differences) == changed, str(report)


@pytest.mark.parametrize("stated", ["float16", "float32", "bfloat16"])
def test_the_dtype_of_config_json_rounds_nothing(tmp_path: Path, stated: str) -> None:
    """Publishers state another one than that of their weights."""
    save_model(tmp_path / "hf", dtype=FP32, shards="1GB")
    edit_json(tmp_path / "hf/config.json", dtype=stated, torch_dtype=stated)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    report = verify(tmp_path / "hf", tmp_path / "ck")
    assert report.ok and "rounded" not in str(report), str(report)
    rewrite(tmp_path / "hf", lambda _, w: torch.nextafter(w, torch.full_like(w, 9.0)))
    assert not verify(tmp_path / "hf", tmp_path / "ck").ok


def test_bf16_beside_fp16(tmp_path: Path) -> None:
    """Neither holds the other's values."""
    save_model(tmp_path / "hf", dtype=FP32, shards="1GB")
    rewrite(tmp_path / "hf", lambda n, w: w.half() if "norm" in n else w.bfloat16())
    import_hf(tmp_path / "hf", tmp_path / "ck")
    report = verify(tmp_path / "hf", tmp_path / "ck")
    assert report.ok and "rounded" not in str(report), str(report)


def test_the_card_counts_what_lies_on_the_disk(mixed: Path) -> None:
    tensors = load_file(mixed / "out" / WEIGHTS).values()
    nbytes = sum(w.numel() * w.element_size() for w in tensors)
    config = json.loads((mixed / "out/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    # Keys and values of each layer and KV head, in the two bytes of bf16.
    a_token = (
        2
        * 2
        * config["head_dim"]
        * (config["num_hidden_layers"] * config["num_key_value_heads"])
    )
    card = (mixed / "out/README.md").read_text()
    assert (
        f"The weights take {nbytes / 1e6:.1f} MB, keys and values {a_token:,}" in card
    )
