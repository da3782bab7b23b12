"""Small random models of every family, made with transformers, whose every weight matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alia_ctx.spec.model import ModelSpec

ALIA = ModelSpec(
    num_hidden_layers=48,
    hidden_size=8192,
    intermediate_size=24576,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=256000,
)
CONTEXT = 128
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None, "head_dim": 16},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.2,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}


def make_model(
    family: str,
    rope: str = "default",
    dtype: torch.dtype = torch.bfloat16,
    **changes: Any,
) -> Any:
    """A random model of `family`. Norms and biases differ from their initial ones and
    zeros, so that mixing up two tensors shows; weights are large enough for attention
    to depend on positions.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {
        **SIZES,
        **FAMILIES[family],
        **changes,
        "rope_parameters": dict(ROPES[rope]),
    }
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **values), attn_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.2 * noise)
            # Not model.to(dtype): that would round the RoPE frequencies too, which no
            # weight file holds.
            parameter.data = parameter.to(dtype)
    model.config.dtype = dtype
    return model.eval()


def save_model(
    directory: Path,
    family: str = "llama",
    rope: str = "default",
    *,
    shards: str = "80KB",
    dtype: torch.dtype = torch.bfloat16,
    **changes: Any,
) -> Any:
    """Save such a model with a tokenizer to `directory`; returns it."""
    model = make_model(family, rope, dtype, **changes)
    model.save_pretrained(directory, max_shard_size=shards)
    write_tokenizer(directory, SIZES["vocab_size"])
    return model


def write_tokenizer(directory: Path, size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordLevel({f"word{i}": i for i in range(size)}, unk_token="word0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 16,
        "unk_token": "word0",
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps(settings), encoding="utf-8"
    )
    (directory / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")


def edit_json(file: Path, **changes: Any) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    document.update(changes)
    file.write_text(json.dumps(document), encoding="utf-8")


def tokens(count: int = CONTEXT) -> Tensor:
    return torch.randint(
        0, SIZES["vocab_size"], (count,), generator=torch.Generator().manual_seed(3)
    )


@torch.no_grad()
def logits(model: Any, count: int = CONTEXT) -> Tensor:
    """fp32 logits [count, vocabulary] of one sequence."""
    return model.float()(tokens(count)[None]).logits[0]


def same_weights(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
        for name in ours
    )
