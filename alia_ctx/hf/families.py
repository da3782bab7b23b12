"""The model families that convert: how each one's `config.json` spells a `ModelSpec`.

Adding a Llama-like family is adding a row here: the class name that goes into
`architectures`, and what its configuration class assumes where a key is absent. Its name,
and what it computes beside Llama, are in `alia_ctx.spec.model`; the weight names in
`rules.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from alia_ctx.spec.model import Architecture

_NO_SLIDING: Mapping[str, Any] = MappingProxyType({"use_sliding_window": False})


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers. Facts from its configuration and modeling modules,
    4.57 and 5.23.

    `absent` are the values its configuration class assumes for keys that change the
    computation and may be left out; `fixed` are those that an export must state because
    the assumed value would be another model.
    """

    model_type: Architecture
    class_name: str
    absent: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (
            Family(
                "llama",
                "LlamaForCausalLM",
                fixed={"attention_bias": False, "mlp_bias": False},
            ),
            Family(
                "mistral",
                "MistralForCausalLM",
                absent={"num_key_value_heads": 8, "sliding_window": 4096},
                fixed={"sliding_window": None},
            ),
            Family(
                "qwen2",
                "Qwen2ForCausalLM",
                absent={"num_key_value_heads": 32},
                fixed=_NO_SLIDING,
            ),
            Family(
                "qwen3",
                "Qwen3ForCausalLM",
                absent={"num_key_value_heads": 32, "head_dim": 128},
                fixed={**_NO_SLIDING, "attention_bias": False},
            ),
        )
    }
)
