"""`config.json` of small models, for the tests of reading and writing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.hf_models import FAMILIES, ROPES, SIZES


def config_of(family: str, rope: str, **changes: Any) -> dict[str, Any]:
    from transformers import AutoConfig

    values = {
        **SIZES,
        **FAMILIES[family],
        **changes,
        "rope_parameters": dict(ROPES[rope]),
    }
    config = AutoConfig.for_model(
        family, architectures=[f"{family.capitalize()}ForCausalLM"], **values
    ).to_dict()
    config["architectures"] = [
        {
            "llama": "LlamaForCausalLM",
            "mistral": "MistralForCausalLM",
            "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM",
        }[family]
    ]
    return config


def put(directory: Path, config: dict[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
