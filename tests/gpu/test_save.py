"""A save in the background of a GPU holds the state of the moment at which it began,
and loads into a new engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests.dense import ALIA_160K
from tests.gpu.steps import ALIA_LAYER, CONTEXT, RATE, rows

pytestmark = [pytest.mark.gpu(1), pytest.mark.timeout(600)]

WIDE = {
    "num_hidden_layers": 3,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 32_000,
}


def state(engine: MegatronEngine) -> list[torch.Tensor]:
    assert engine.optimizer is not None
    tensors = [p.detach().clone() for p in engine.parameters()]
    for _, states in engine.optimizer.states():
        tensors += [values.clone() for values in states.values()]
    return tensors


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_background_save_holds_its_moment(tmp_path: Path, precision: Any) -> None:
    config = EngineConfig(
        precision=precision, attention="auto" if precision == "bf16" else "reference"
    )
    model = ModelSpec(**{**ALIA_LAYER, **WIDE})
    with Distributed(config):
        engine = MegatronEngine(
            model, ALIA_160K, CONTEXT, Layout(), config, OptimizerConfig()
        )
        for _ in range(2):
            engine.train_update(rows(model.vocab_size), RATE)
        (tmp_path / "state").mkdir()
        saving = engine.begin_save(tmp_path)
        expected = state(engine)
        engine.train_update(rows(model.vocab_size), 100 * RATE)
        saving.finish()
        assert not all(
            torch.equal(a, b) for a, b in zip(state(engine), expected, strict=True)
        )
        fresh = MegatronEngine(
            model, ALIA_160K, CONTEXT, Layout(), config, OptimizerConfig(), seed=5
        )
        fresh.load(tmp_path / "state", with_optimizer=True)
        assert all(
            torch.equal(a, b) for a, b in zip(state(fresh), expected, strict=True)
        )
