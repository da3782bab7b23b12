"""What the tests of conversion share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SHARD = "model-00002-of-00004.safetensors"


def load_model(directory: Path, dtype: Any = "auto") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager"
    ).eval()


def files_below(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def edit_shard(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    weights = load_file(directory / SHARD)
    change(weights)
    save_file(weights, directory / SHARD, metadata={"format": "pt"})


def first_matrix(weights: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(weights) if weights[name].dim() == 2)


def poison(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[first_matrix(weights)][3, 4] = value

    return change
