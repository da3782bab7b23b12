"""Models of other families, as transformers reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.scoring import CausalModel


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    config = GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_losses_are_those_of_the_model_that_was_saved(directory: Path) -> None:
    tokens = np.arange(3, 20)
    losses, hits = CausalModel(directory, "fp32").losses_and_hits(tokens)
    model = GPTNeoXForCausalLM.from_pretrained(directory).eval()
    ids = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        out = model(ids, labels=ids)
    assert losses.mean() == pytest.approx(out.loss.item(), rel=1e-5)
    expected = out.logits[0, :-1].argmax(-1) == ids[0, 1:]
    assert hits.tolist() == expected.tolist()


@pytest.mark.parametrize("damage", ["missing", "of another shape"])
def test_a_weight_that_would_be_random_is_refused(directory: Path, damage: str) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    if damage == "missing":
        del weights[name]
    else:
        weights[name] = torch.zeros(7, 16)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"dense_h_to_4h.*evaluate another"):
        CausalModel(directory, "fp32")
