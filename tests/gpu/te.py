"""TransformerEngine's layers and FP8 on a GPU, beside the local layers; a process of its own.

    python -m tests.gpu.te FOLDER

Prints one JSON line; `test_te.py` reads it.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.dense import ALIA_160K
from tests.engine import save, tokens_passing
from tests.gpu.steps import canonical, exact_norm

MODEL = ModelSpec(
    num_hidden_layers=2,
    hidden_size=2048,
    intermediate_size=6144,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=128,
    vocab_size=1024,
)
UPDATES, RATE = 20, 3e-6
EVEN, ODD = 256, 264  # tokens of a row: a multiple of 16, and none
DOCUMENTS = {EVEN: (130, 1, 60), ODD: (130, 1, 133)}


def row(context: int) -> PackedRow:
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, MODEL.vocab_size, n) for n in DOCUMENTS[context]]
    return PackedRow.from_documents(documents, context)


def make(
    layers: str, fp8: str = "off", context: int = EVEN, offload: bool = False
) -> MegatronEngine:
    gc.collect()
    torch.cuda.empty_cache()
    settings = EngineConfig(
        layers=layers,
        fp8=fp8,  # type: ignore[arg-type]
        fp8_bf16_layers=0,
        offload_activations=offload,
    )
    constants = OptimizerConfig(clip_grad=1e9)
    return MegatronEngine(MODEL, ALIA_160K, context, Layout(), settings, constants)


def added_in_products(engine: MegatronEngine) -> int:
    """Weights whose last gradient was added to the fp32 one by the product that formed it:
    TransformerEngine marks them.
    """
    return sum(
        bool(getattr(parameter, "grad_added_to_main_grad", False))
        for parameter in engine.module.parameters()
    )


def norms(engine: MegatronEngine, context: int = EVEN) -> dict[str, float]:
    """Of each weight's gradient, by the name that a checkpoint has for it."""
    engine.accumulate_gradients([row(context)])
    return {
        canonical(name): exact_norm(parameter.main_grad)
        for name, parameter in engine.module.named_parameters()
    }


def learn(engine: MegatronEngine, context: int = EVEN, updates: int = UPDATES) -> Any:
    return [engine.train_update([row(context)], RATE).loss for _ in range(updates)]


def token_losses(engine: MegatronEngine) -> list[float]:
    [losses] = engine.row_losses([row(EVEN)])
    return losses.values.tolist()


def compare(layers: str, fp8: str = "off") -> dict[str, Any]:
    engine = make(layers, fp8)
    found = {
        "words": engine.layers.words,
        "passed over": engine.layers.passed_over,
        "measured": token_losses(engine),
        "norms": norms(engine),
        "added in products": added_in_products(engine),
        "losses": learn(engine),
    }
    del engine
    engine = make(layers, fp8, ODD)
    return {**found, "odd norms": norms(engine, ODD), "odd": learn(engine, ODD, 3)}


def go_on(folder: Path) -> None:
    """Two updates by one kind, saved, loaded by the other, and saved again."""
    for first, fp8, then in (("te", "current", "local"), ("local", "off", "te")):
        engine = make(first, fp8)
        learn(engine, updates=2)
        save(engine, folder / f"{first}-{then}" / "state")
        del engine
        engine = make(then)
        engine.load(folder / f"{first}-{then}" / "state", with_optimizer=True)
        save(engine, folder / f"{first}-{then}-again" / "state")
        del engine


def padded() -> dict[str, Any]:
    """The row of an odd length without FP8, with and without padding."""
    found = {}
    for multiple in (1, 16):
        engine = make("te", context=ODD)
        engine.passes.padding.multiple = multiple
        passed = tokens_passing(engine)
        found[multiple] = {"norms": norms(engine, ODD), "losses": learn(engine, ODD, 3)}
        found[multiple]["tokens"] = sorted(set(passed))
        del engine
    return found


def not_fused() -> dict[str, Any]:
    """Gradients that are added after: with activations on the host."""
    engine = make("te", offload=True)
    return {"norms": norms(engine), "added in products": added_in_products(engine)}


def main() -> None:
    with Distributed(EngineConfig()):
        found: dict[str, Any] = {
            "local": compare("local"),
            "te": compare("auto"),
            "current": compare("te", "current"),
            "blockwise": compare("te", "blockwise"),
            "not fused": not_fused(),
            "padded": padded(),
        }
        go_on(Path(sys.argv[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
