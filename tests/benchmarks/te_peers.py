"""The peers on TransformerEngine's layers over its stand-in, in a process of its own:
Megatron-Core looks for the package while it is imported. Attention is Megatron-Core's own
dense one, beside TransformerEngine's choice of a backend (`te_attention.choose`).

    python -m tests.benchmarks.te_peers

Prints one JSON line; `test_peers.py` reads it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import torch

from alia_ctx.nn import layer_choice
from tests.benchmarks import te_attention
from tests.mcore import te_stand_in

te_stand_in.install()
layer_choice.hide_where_unusable = lambda: None

from megatron.core.models.gpt import gpt_layer_specs  # noqa: E402
from megatron.core.transformer.dot_product_attention import (  # noqa: E402
    DotProductAttention,
)

from alia_ctx.config.run import EngineConfig  # noqa: E402
from alia_ctx.mcore import engine  # noqa: E402
from alia_ctx.mcore.runtime import Distributed  # noqa: E402
from alia_ctx.spec.model import ModelSpec  # noqa: E402
from benchmarks.gpu_step import Case, make_row  # noqa: E402
from benchmarks.peers import PEERS, Task  # noqa: E402

CONTEXT, WORDS = 64, 128
MODEL = ModelSpec(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=192,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=WORDS,
)

module = "transformer_engine.pytorch.attention.dot_product_attention"
importlib.import_module(module)._attention_backends = te_attention.BACKENDS
engine.choose_layers = lambda asked, *ignored: layer_choice.LayerChoice(
    "te" if asked == "te" else "local", "stand-in"
)


class Attention(DotProductAttention):
    def forward(self, *arguments: Any, **options: Any) -> Any:
        te_attention.choose()
        return super().forward(*arguments, **options)


original = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec


def with_dense_attention(*arguments: Any, **options: Any) -> Any:
    layer = original(*arguments, **options)
    layer.submodules.self_attention.submodules.core_attention = Attention
    return layer


gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec = with_dense_attention


def main() -> None:
    task = Task(MODEL, make_row(Case(2, CONTEXT, "none"), WORDS), CONTEXT, 1)
    found: dict[str, Any] = {}
    with Distributed(EngineConfig()):
        for name in sys.argv[1:]:
            te_stand_in.PRODUCTS.clear()
            # Each has a process of its own otherwise.
            for variable in [v for v in os.environ if v.startswith("NVTE_")]:
                del os.environ[variable]
            te_attention.BACKENDS.clear()
            te_attention.BACKENDS.update(te_attention.untouched())
            step = PEERS[name](task)
            torch.manual_seed(0)
            losses = [step.run() for _ in range(2)]
            recipes = sorted({recipe for recipe, _ in te_stand_in.PRODUCTS})
            found[name] = {
                "losses": losses,
                "recipes": recipes,
                "parameters": step.parameters,
                "kernel": step.describe(),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
