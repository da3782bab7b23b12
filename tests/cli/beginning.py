"""Bases for `init`, and the command as its user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from alia_ctx.cli.run_commands import app
from alia_ctx.errors import AliaError
from tests.text_data import write_jsonl
from tests.tokenizers import byte_level, save, with_template

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 352,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
SCALED = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 6.0,
        "original_max_position_embeddings": 32,
    },
    # As Llama 3.1: less than the context by its factor.
    "llama3 beyond its factor": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "attention_factor": 1.3,
    },
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}


def write_base(directory: Path, **changes: Any) -> Path:
    save(with_template(byte_level()), directory)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def init(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


def said(result: Result) -> str:
    assert result.exception is None or isinstance(
        result.exception, AliaError | SystemExit
    ), result.exception
    return result.output + str(result.exception or "")


def filled(folder: Path) -> list[str]:
    """Overrides that fill in the placeholders."""
    train = write_jsonl(folder / "train.jsonl", ["a text " * 2000, "another " * 9])
    held = write_jsonl(folder / "held.jsonl", ["other text " * 2000])
    return [
        f"data.sources.text.inputs=[{train}]",
        f"evaluation.held_out.inputs=[{held}]",
    ]
